"""A mended copy of a data set, in its own format; the original is only read.

The folder is copied as it is, and the copy is mended until no error is left: boxes are clipped,
objects that can't be used are deleted, and so are pictures that can't be used, with their labels.
What a person must decide (all warnings and notes) stays as it is. Each change is told.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from triscale.data.build import Judged, Problem, Rows, judge
from triscale.data.open import Scanned, scan_dataset
from triscale.data.options import DataConfig
from triscale.data.pictures import MAX_PICTURE_BYTES, picture_size, without_orientation
from triscale.data.root import DataRoot
from triscale.data.yolo import YoloSource, label_path, split_places, yolo_source
from triscale.doctor.findings import Box
from triscale.doctor.rewrite import (
    CocoEdits,
    as_written,
    rewrite_coco,
    rewrite_list,
    rewrite_rows,
    rewrite_xml,
    rewrite_yaml,
)
from triscale.errors import UserError
from triscale.files import read_lines, read_regular, write_atomically

MIN_LEFT = 0.1  # of a box's area that must lie in the picture for it to be clipped
_ROUNDS = 4  # what is mended may bring something else to light
_MAX_BYTES = 1 << 30  # of a list


class Change(NamedTuple):
    """What was changed in a file of the copy."""

    path: str  # relative to the copy
    object: str
    what: str

    def line(self) -> str:
        """The change in one line."""
        return ": ".join(part for part in self if part)


class _Work(NamedTuple):
    """A copy that is being mended."""

    folder: Path
    scanned: Scanned
    judged: Mapping[str, Judged]
    left_out: dict[Path, str]  # pictures that must go, and why
    changes: dict[Change, None]  # in order; a picture may be in both splits

    def tell(self, path: Path | str, name: str, what: str) -> None:
        """Write down a change."""
        self.changes[Change(os.path.relpath(path, self.folder), name, what)] = None


def mend(
    path: Path, out: Path, config: DataConfig, *, unreadable: Collection[str] = ()
) -> tuple[Path, list[Change]]:
    """Write a copy of the data set at `path` to the new folder `out`, without errors.

    `unreadable` are pictures that can't be decoded. Returns what to call the copy by, and all
    changes, which `mended.txt` in it lists.
    """
    require_new_folder(out)
    scanned = scan_dataset(path, config)
    folder = scanned.root
    if scanned.format == "yolo":
        folder = yolo_source(scanned.root, outside=config.outside).root
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--fix {out}: lies in the data set itself; name a folder elsewhere")
    _require_within(scanned, folder)
    left_out = {_moved(picture, folder, out): "it can't be decoded" for picture in unreadable}
    copy = _copied(path, folder, out, scanned=scanned, outside=config.outside)
    changes: dict[Change, None] = {}
    for number in range(_ROUNDS):
        scanned = scan_dataset(copy, config)
        _require_within(scanned, out)  # nothing else is changed
        judged = {
            role: judge(scan, scanned.classes, inclusive=config.inclusive_boxes)
            for role, scan in scanned.scans.items()
        }
        if not left_out and not any(split.read.skipped for split in judged.values()):
            lines = "".join(f"{change.line()}\n" for change in changes)
            write_atomically(out / "mended.txt", lines.encode("utf-8", "surrogateescape"))
            return copy, list(changes)
        work = _Work(out, scanned, judged, left_out, changes)
        if scanned.format == "coco":
            _mend_coco(work, first=number == 0)
        else:
            _mend_files(work)
        left_out = {}
    raise UserError(
        f"--fix {out}: some errors could not be mended; triscale check {copy} tells them"
    )


def require_new_folder(out: Path) -> None:
    """UserError if there is something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--fix {out}: expected a new or empty folder")


# --- the copy -------------------------------------------------------------------------------------


def _copied(path: Path, folder: Path, out: Path, *, scanned: Scanned, outside: bool) -> Path:
    """Copy the folder; the name of the copy of `path`, which speaks of the copy only."""
    root = DataRoot(folder, outside=outside)

    def strangers(place: str, names: list[str]) -> list[str]:
        """Links that lead out of the data set."""
        paths = [os.path.join(place, name) for name in names]
        return [
            n
            for n, p in zip(names, paths, strict=True)
            if os.path.islink(p) and not (outside or root.holds(p))
        ]

    shutil.copytree(
        folder, out, ignore=strangers, ignore_dangling_symlinks=True, dirs_exist_ok=True
    )
    if scanned.format != "yolo":
        return out if path == folder else _moved(path, folder, out)
    source = yolo_source(scanned.root, outside=outside)
    for place in _lists(source):
        rows = [row.strip() for row in read_lines(place, limit=_MAX_BYTES)]
        if any(os.path.isabs(row) for row in rows):
            target = _moved(place, folder, out)
            rows = [_relative(row, folder, at=place.parent) for row in rows]
            write_atomically(target, "".join(f"{row}\n" for row in rows).encode())
    description = path if path.is_file() else path / "data.yaml"
    if not source.splits:
        return out
    # without its `path` it speaks of the folder that it is in
    rewrite_yaml(description, out / description.name, lambda place: _relative(place, folder))
    return out / description.name if path.is_file() else out


def _moved(path: Path | str, folder: Path, out: Path) -> Path:
    """Where a file of `folder` is in its copy."""
    relative = os.path.relpath(path, folder)
    if relative.startswith(os.pardir):
        raise UserError(
            f"{path}: lies outside of {folder}, which is what --fix copies; "
            "bring all of the data set into one folder first"
        )
    return out / relative


def _relative(path: str, folder: Path, *, at: Path | None = None) -> str:
    """`path` relative to `at` if it is an absolute one of `folder`."""
    if not os.path.isabs(path):
        return path
    _moved(path, folder, folder)
    return os.path.relpath(path, at or folder)


def _require_within(scanned: Scanned, folder: Path) -> None:
    """UserError unless all pictures and labels of a data set lie in a folder by their names."""
    for scan in scanned.scans.values():
        rows = scan.pictures
        paths = rows.paths if isinstance(rows, Rows) else [picture.path for picture in rows]
        sources = rows.sources if isinstance(rows, Rows) else [picture.source for picture in rows]
        files = [*paths, *sources, *(problem.file for problem in scan.problems)]
        files += [scan.file] * bool(scan.file)
        for parent in {os.path.dirname(path) for path in files}:
            _moved(parent or os.curdir, folder, folder)


def _lists(source: YoloSource) -> list[Path]:
    """The list files of a YOLO set."""
    names = source.splits or ("train", "val", "valid", "validation", "test")
    places = {place for name in names for place in split_places(source, name)}
    return sorted(place for place in places if place.is_file())


# --- one round of mending -------------------------------------------------------------------------


def _mend_files(work: _Work) -> None:
    """VOC and YOLO: a label file for each picture."""
    sizes: dict[str, tuple[int, int]] = {}
    boxes: dict[str, dict[int, Box | None]] = {}
    for judged in work.judged.values():
        for problem in judged.scan.problems:
            if problem.kind == "broken-object":
                boxes.setdefault(problem.file, {})[problem.number] = None
                work.tell(problem.file, "", f"deleted: {_what(problem)}")
            elif problem.kind == "no-size":
                sizes[problem.file] = picture_size(Path(problem.picture))
                work.tell(problem.file, "", "the size of the picture written into it")
            else:
                _turn_or_leave_out(work, problem)
        for i in np.flatnonzero(judged.faults).tolist():
            source = judged.rows.sources[judged.picture_of(i)]
            boxes.setdefault(source, {})[int(judged.rows.numbers[i])] = _new_box(work, judged, i)
    for file in {*boxes, *sizes}:
        changed = boxes.get(file, {})
        if work.scanned.format == "voc":
            rewrite_xml(Path(file), changed, size=sizes.get(file))
        else:
            rewrite_rows(Path(file), changed)
    for picture, why in work.left_out.items():
        voc = work.scanned.format == "voc"
        labels = label_path(picture)
        if voc:
            labels = picture.parents[1] / "Annotations" / f"{picture.stem}.xml"
        for file in (picture, labels):
            file.unlink(missing_ok=True)
        work.tell(picture, "", f"left out with its labels: {why}")
    if work.left_out and work.scanned.format == "voc":
        for folder in {picture.parents[1] for picture in work.left_out}:
            for path in (folder / "ImageSets" / "Main").glob("*.txt"):
                rewrite_list(path, work.left_out, names=True)
    elif work.left_out:
        for path in _lists(yolo_source(work.scanned.root)):
            rewrite_list(path, work.left_out)


def _mend_coco(work: _Work, *, first: bool) -> None:
    """COCO: one file for each split."""
    files: dict[str, CocoEdits] = {}
    for judged in work.judged.values():
        rows = judged.rows
        source = judged.scan.file
        edits = files.setdefault(source, CocoEdits())
        before = set(work.left_out)
        for problem in judged.scan.problems:
            if problem.kind == "broken-category":
                edits.categories.add(problem.number)
            elif problem.kind == "broken-image":
                edits.images.add(problem.number)
            elif problem.kind == "broken-object" or (problem.kind == "no-area" and not first):
                edits.annotations.add(problem.number)
            elif problem.kind == "no-area":
                edits.areas.add(problem.number)
                work.tell(source, "", f"now the area of the box: {_what(problem)}")
                continue
            elif problem.kind == "no-size":
                edits.sizes[problem.number] = picture_size(Path(problem.picture))
                work.tell(source, "", f"the size written into it: {_what(problem)}")
                continue
            else:
                _turn_or_leave_out(work, problem)
                if Path(problem.picture) in work.left_out:
                    edits.images.add(problem.number)
                continue
            work.tell(source, "", f"deleted: {_what(problem)}")
        for picture in np.flatnonzero([Path(path) in before for path in rows.paths]).tolist():
            edits.image_ids.add(rows.ids[picture])
        for i in np.flatnonzero(judged.faults).tolist():
            x, y, width, height = rows.boxes[i].tolist()
            key = int(rows.numbers[i]), (x, y, width, height)
            edits.boxes[key] = _new_box(work, judged, i)
    for file, edits in files.items():
        rewrite_coco(Path(file), edits)
    for picture, why in work.left_out.items():
        picture.unlink(missing_ok=True)
        work.tell(picture, "", f"left out with its labels: {why}")


def _turn_or_leave_out(work: _Work, problem: Problem) -> None:
    """Let the picture go, unless its labels were made for it as it is stored, without EXIF."""
    picture = Path(problem.picture)
    if problem.kind == "wrong-size":
        data = read_regular(picture, limit=MAX_PICTURE_BYTES)
        upright = without_orientation(data)
        if upright != data:
            write_atomically(picture, upright)
            work.tell(picture, "", "its EXIF orientation is now that of the labels: upright")
            return
    work.left_out[picture] = _what(problem)


def _new_box(work: _Work, judged: Judged, i: int) -> Box | None:
    """What is left of a box in its picture, as it is to be written; None: nothing."""
    picture = judged.picture_of(i)
    source, (kind, name, what) = judged.rows.sources[picture], judged.fault(i)
    height, width = judged.rows.sizes[picture].tolist()
    if kind == "outside-box":
        convention = judged.scan.convention
        edges = convention.to_xyxy(
            judged.rows.boxes[i : i + 1], np.array([[height, width]], np.int32)
        )
        inside = np.clip(edges, 0, (width, height, width, height))
        with np.errstate(over="ignore"):  # a box of absurd size has an infinite area
            (area,), (left,) = ((e[:, 2:] - e[:, :2]).prod(1).tolist() for e in (edges, inside))
        if left >= MIN_LEFT * area:
            work.tell(source, name, f"clipped to the picture: {what}")
            x1, y1, x2, y2 = inside[0].tolist()
            return as_written((x1, y1, x2, y2), convention.item, size=(height, width))
        what += f" (only {left / area:.1%} of it is inside)"
    work.tell(source, name, f"deleted: {what}")
    return None


def _what(problem: Problem) -> str:
    return problem.removeprefix(f"{problem.file}: ")
