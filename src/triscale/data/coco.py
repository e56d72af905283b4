"""COCO: one JSON file per split with images, annotations and categories.

The format: https://cocodataset.org/#format-data. Category ids are sparse (90 numbers for 80
classes); here a class is the rank of its id, as in the reference. Training leaves out what can't be
learned from (crowd regions, on request empty pictures and small objects); evaluation keeps
everything, because the metric must know where crowds are (Lin et al. 2014, "Microsoft COCO").

The file is read entry by entry into packed arrays, and its three lists may come in any order: ids
are matched when all are there.
"""

from __future__ import annotations

import math
import re
import reprlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.data.build import (
    Convention,
    Problem,
    Read,
    Rows,
    Scan,
    Seen,
    finish,
    look,
    size_problem,
)
from triscale.data.index import PackedStrings, StringPacker
from triscale.data.json_stream import CHUNK, read_lists
from triscale.data.options import DataConfig
from triscale.data.pictures import picture_sizes
from triscale.data.root import DataRoot
from triscale.errors import UserError

_BLOCK = 4096  # pictures that are looked at in one go
_MAX_ID = 2**63  # ids are kept as int64
_MAX_AREA = 1e30  # areas are kept as float32


def read_coco(
    annotations: Path,
    images: Path,
    config: DataConfig,
    *,
    classes: tuple[str, ...] | None = None,
    evaluation: bool = False,
) -> Read:
    """The pictures of a COCO file, by image id; `classes` None: its categories, by category id.

    `images` is the folder of the pictures, or a COCO root whose folders the `coco_url`s name.
    """
    scan = scan_coco(annotations, images, config, evaluation=evaluation)
    return finish([scan], config, classes=classes or scan.names)[0]


def scan_coco(
    annotations: Path,
    images: Path,
    config: DataConfig,
    *,
    evaluation: bool,
    root: DataRoot | None = None,
    chunk: int = CHUNK,
) -> Scan:
    """Everything that the file holds, classes by name; with `root` all of it must lie in there."""
    if root:
        root.require(annotations)
    pictures, objects = _Images(annotations, images), _Objects()
    categories: list[Any] = []
    add: dict[str, Callable[[Any], None]]
    add = {"images": pictures.add, "annotations": objects.add, "categories": categories.append}
    for key, entry in read_lists(annotations, [*add], what="a COCO annotation file", chunk=chunk):
        add[key](entry)
    problems: list[Problem] = []
    names = _names(annotations, categories, problems)
    pictures.sort(problems)
    chosen = objects.choose(pictures, names, problems, config=config, evaluation=evaluation)
    readable, sizes, seen = _look_at(pictures, problems, root)
    rows = _join(pictures, objects, chosen, readable=readable, sizes=sizes, names=names)
    classes = tuple(dict.fromkeys(names.values()))
    drop_empty = config.skip_empty and not evaluation
    return Scan(
        annotations.stem, _COCO, rows, problems, classes, drop_empty, seen, str(annotations)
    )


def _to_xyxy(written: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.concatenate([written[:, :2], written[:, :2] + written[:, 2:]], axis=1)


_COCO = Convention("annotation", ("x", "y", "width", "height"), _to_xyxy)


class _Images:
    """The entries of `images` as packed arrays, in the order of the file until they are sorted."""

    def __init__(self, annotations: Path, folder: Path) -> None:
        self.annotations, self._folder = annotations, folder
        self.folders: dict[str, bool] = {}  # those that URLs name, and whether they are there
        self._ids, self._positions, self._said = array("q"), array("q"), array("d")
        self._named, self._sized = array("b"), array("b")  # a usable file_name; height and width
        self._paths = StringPacker(prefix=str(folder / "x")[:-1])
        self._sources = StringPacker(prefix=f"{annotations}: ")
        self._position = 0
        self._lines: list[tuple[int, str]] = []

    def add(self, entry: Any) -> None:
        """Take in the next entry."""
        self._position += 1
        key = entry.get("id") if isinstance(entry, dict) else None
        if type(key) is not int or not _is_id(key):
            what = "'id' has more than 64 bits" if type(key) is int else "no whole number as 'id'"
            self._lines.append((self._position, f"number {self._position}: {what}"))
            return
        name = entry.get("file_name")
        path = self._path(name, entry.get("coco_url")) if isinstance(name, str) else None
        try:
            self._paths.add(path or self._paths.prefix)
        except UnicodeEncodeError:  # half a surrogate pair: no file can be called so
            self._paths.add(self._paths.prefix)
            path = None
        self._sources.add(f"{self.annotations}: {name if path else f'image {key}'}")
        height_width = _floats([entry.get("height"), entry.get("width")])
        self._ids.append(key)
        self._positions.append(self._position)
        self._named.append(path is not None)
        self._sized.append(bool(height_width))
        self._said.extend(height_width or (0.0, 0.0))

    def sort(self, problems: list[Problem]) -> None:
        """Bring the arrays into the order of the ids, one row for each."""
        ids = np.array(self._ids, np.int64)
        order = np.argsort(ids, kind="stable")
        fresh = np.ones(len(ids), np.bool_)
        fresh[1:] = np.diff(ids[order]) != 0
        self.paths, self.sources = self._paths.packed(), self._sources.packed()
        self.said = np.array(self._said, np.float64).reshape(-1, 2)
        self.named, self.sized = np.array(self._named, np.bool_), np.array(self._sized, np.bool_)
        firsts = order[np.maximum.accumulate(np.where(fresh, np.arange(len(ids)), 0))]
        for row, first in zip(order[~fresh].tolist(), firsts[~fresh].tolist(), strict=True):
            if self._read_of(row) != self._read_of(first):  # the same entry twice does no harm
                line = f"{ids[row]}: two different entries have this id"
                self._lines.append((self._positions[row], line))
        order = order[fresh]
        self.ids, self.said = ids[order], self.said[order]
        self.positions = np.array(self._positions, np.int64)[order]  # in the list, from 1
        self.named, self.sized = self.named[order], self.sized[order]
        self.paths, self.sources = self.paths.select(order), self.sources.select(order)
        for position, line in sorted(self._lines):
            text = f"{self.annotations}: image {line}"
            problems.append(Problem(text, "broken-image", self.annotations, position))

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Where these ids are; -1: nowhere."""
        if not len(self.ids):
            return np.full(len(ids), -1, np.int32)
        places = np.searchsorted(self.ids, ids).astype(np.int32).clip(max=len(self.ids) - 1)
        places[self.ids[places] != ids] = -1
        return places

    def _read_of(self, row: int) -> tuple[Any, ...]:
        return self.paths[row], self.sources[row], self.sized[row], *self.said[row].tolist()

    def _path(self, name: str, url: object) -> str | None:
        """Where a picture is; None: `name` names no file."""
        if name.startswith("/") or ".." in name.split("/") or re.search(r"[\\:\0]", name):
            raise UserError(
                f"{self.annotations}: file_name '{name}' leads out of the folder of pictures"
            )
        if not PurePosixPath(name).name:
            return None
        # The reference finds pictures under a root by the split's folder in the URL:
        # http://images.cocodataset.org/train2017/000000000009.jpg
        part = url.split("/")[-2:-1] if isinstance(url, str) else []
        if part and re.fullmatch(r"\w+", part[0]):
            place = self._folder / part[0]
            if str(place) not in self.folders:
                self.folders[str(place)] = place.is_dir()
            if self.folders[str(place)]:
                return str(place / name)
        return str(self._folder / name)


class _Objects:
    """The entries of `annotations` as packed arrays, in the order of the file."""

    def __init__(self) -> None:
        self._images, self.numbers, self._kinds = array("q"), array("q"), array("i")
        self.boxes, self.areas = array("d"), array("d")
        self.crowd, self._ignore = array("b"), array("b")
        self._categories: dict[int, int] = {}  # category id -> its number in `_kinds`
        self._position = 0
        # (rows before it, its number, image_id, category_id, what else is wrong with it)
        self._broken: list[tuple[int, int, Any, Any, str]] = []

    def add(self, entry: Any) -> None:
        """Take in the next entry."""
        self._position += 1
        if not isinstance(entry, dict):
            self._broken.append((len(self._images), self._position, None, None, ""))
            return
        number: Any = entry.get("id")
        image: Any = entry.get("image_id")
        category: Any = entry.get("category_id")
        if not _is_id(number):
            number = self._position
        if _is_id(image) and type(category) is int:
            try:
                box = array("d", entry["bbox"])
                area = array("d", [entry["area"]])[0] if "area" in entry else _area(box)
                if len(box) == 4 and (abs(area) <= _MAX_AREA or "area" not in entry):
                    self.areas.append(area)
                    self.boxes.extend(box)
                    self._images.append(image)
                    self.numbers.append(number)
                    self._kinds.append(self._categories.setdefault(category, len(self._categories)))
                    self.crowd.append(bool(entry.get("iscrowd", 0)))
                    self._ignore.append(entry.get("ignore", 0) == 1)
                    return
            except (KeyError, TypeError, OverflowError):  # not numbers, or of hundreds of digits
                pass
        # What stands there may be long or deep.
        line = f"bbox is {reprlib.repr(entry.get('bbox'))}, expected four numbers"
        if len(_floats(entry.get("bbox"))) == 4:
            line = f"area is {reprlib.repr(entry.get('area'))}, expected a number"
        self._broken.append((len(self._images), number, image, category, line))

    def choose(
        self,
        images: _Images,
        names: Mapping[int, str],
        problems: list[Problem],
        *,
        config: DataConfig,
        evaluation: bool,
    ) -> _Chosen:
        """The objects to be used, with a line for each that can't be."""
        ranks = {category: rank for rank, category in enumerate(names)}
        ranks_by_kind = np.array([ranks.get(c, -1) for c in self._categories], np.int32)
        kinds = ranks_by_kind[_view(self._kinds)]
        places = images.find(_view(self._images))
        usable = (places >= 0) & (kinds >= 0)
        # the row, whether it is one itself or lies before it, the kind and the line
        lines: list[tuple[int, int, str, str]] = []
        categories = list(self._categories)
        for row in np.flatnonzero(~usable).tolist():
            image, category = self._images[row], categories[self._kinds[row]]
            what = _strange(image, category, images, names)
            line = f"annotation {self.numbers[row]}: {what}"
            lines.append((row, 1, "broken-object", line))
        for row, number, image, category, line in self._broken:
            if line:
                what = _strange(image, category, images, names) or line
                lines.append((row, 0, "broken-object", f"annotation {number}: {what}"))
            else:
                what = f"annotation number {number}: expected a JSON object"
                lines.append((row, 0, "broken-object", what))
        if not evaluation:
            areas = _view(self.areas)
            usable &= ~_view(self._ignore).astype(np.bool_)
            if not config.use_crowd:
                usable &= ~_view(self.crowd).astype(np.bool_)
            for row in np.flatnonzero(usable & (areas <= 0)).tolist():
                what = f"('{names[categories[self._kinds[row]]]}'): area is {areas[row]:g}"
                source = images.sources[int(places[row])].removeprefix(f"{images.annotations}: ")
                line = f"{source}: annotation {self.numbers[row]} {what}"
                lines.append((row, 1, "no-area", line))
            usable &= ~(areas <= 0) & ~(areas < config.min_object_area)
        lines.sort(key=lambda line: line[:2])  # as in the file
        before = np.array([row for row, *_ in self._broken], np.int64)
        num_broken = 0
        for row, own, kind, line in lines:
            others = int(np.searchsorted(before, row, "right")) if own else num_broken
            num_broken += not own
            text, position = f"{images.annotations}: {line}", row + others + 1
            problems.append(Problem(text, kind, images.annotations, position))
        rows = np.flatnonzero(usable).astype(np.int32)
        return _Chosen(rows, places[rows], kinds[rows])


class _Chosen(NamedTuple):
    """Objects that are used; m of them."""

    rows: NDArray[np.int32]  # (m,) positions in the file
    images: NDArray[np.int32]  # (m,) positions of their pictures in the sorted _Images
    kinds: NDArray[np.int32]  # (m,) positions of their categories in the sorted names


def _area(box: Sequence[float]) -> float:
    """Width times height; nan, which is the area of what is left of the box, if that is absurd."""
    area = box[2] * box[3] if len(box) == 4 else math.nan
    return area if abs(area) <= _MAX_AREA else math.nan


def _names(annotations: Path, entries: Sequence[Any], problems: list[Problem]) -> dict[int, str]:
    """The names of the categories, sorted by id."""
    names: dict[int, str] = {}
    for position, entry in enumerate(entries, 1):
        key = entry.get("id") if isinstance(entry, dict) else None
        if type(key) is not int:
            line = f"{annotations}: category number {position}: no whole number as 'id'"
            problems.append(Problem(line, "broken-category", annotations, position))
            continue
        name = entry.get("name", key)
        name = name if isinstance(name, str) else reprlib.repr(name)
        if names.setdefault(key, name) != name:  # the same entry twice does no harm
            line = f"{annotations}: category {key}: two different entries have this id"
            problems.append(Problem(line, "broken-category", annotations, position))
    return dict(sorted(names.items()))


def _strange(image: Any, category: Any, images: _Images, names: Mapping[int, str]) -> str:
    """What is wrong with the ids that an object refers to, if anything."""
    if not _is_id(image) or images.find(np.array([image]))[0] < 0:
        return f"image_id {reprlib.repr(image)} is not among the images"
    if type(category) is not int or category not in names:
        return f"category_id {reprlib.repr(category)} is not among the categories"
    return ""


def _look_at(
    images: _Images, problems: list[Problem], root: DataRoot | None
) -> tuple[NDArray[np.bool_], NDArray[np.int32], Seen]:
    """Of the n sorted pictures: (n,) whether it can be used, (n, 2) height and width."""
    for row in np.flatnonzero(~images.named):
        line = f"{images.annotations}: image {images.ids[row]}: no text as 'file_name'"
        position = int(images.positions[row])
        problems.append(Problem(line, "broken-image", images.annotations, position))
    usable, sizes = np.zeros(len(images.ids), np.bool_), np.zeros((len(images.ids), 2), np.int32)
    states = [np.zeros((0, 2), np.int64)]
    named = np.flatnonzero(images.named)
    paths = images.paths.select(named)
    for start in range(0, len(named), _BLOCK):
        block = paths[start : start + _BLOCK]
        states.append(look(block))  # before they are opened: a later change must be noticed
        block_sizes = picture_sizes([Path(path) for path in block], root)
        for i, (path, size) in enumerate(zip(block, block_sizes, strict=True), start):
            row = named[i]
            position = int(images.positions[row])
            if isinstance(size, UserError):
                problems.append(Problem(str(size), "broken-picture", path, position, path))
                continue
            height, width = images.said[row].tolist()
            said = (height, width) if images.sized[row] else None
            line = size_problem(said, size)
            if line:
                text = f"{images.sources[int(row)]}: {line}"
                kind = "wrong-size" if said else "no-size"
                problems.append(Problem(text, kind, images.annotations, position, path))
            usable[row] = said in (None, size)  # else the boxes belong to some other picture
            sizes[row] = size
    return usable, sizes, Seen(paths, np.concatenate(states), images.folders)


def _join(
    images: _Images,
    objects: _Objects,
    chosen: _Chosen,
    *,
    readable: NDArray[np.bool_],
    sizes: NDArray[np.int32],
    names: Mapping[int, str],
) -> Rows:
    """The readable pictures with their objects, which are used up."""
    order = np.argsort(chosen.images, kind="stable").astype(np.int32)
    order = order[readable[chosen.images[order]]]
    counts = np.bincount(chosen.images[order], minlength=len(readable))[readable]
    rows, pictures = chosen.rows[order], np.flatnonzero(readable)
    with np.errstate(over="ignore"):
        areas = _view(objects.areas)[rows].astype(np.float32)
    boxes = _view(objects.boxes).reshape(-1, 4)
    for column in boxes.T:  # in place: this is most of the memory
        column[: len(rows)] = column[rows]
    return Rows(
        paths=images.paths.select(pictures),
        ids=PackedStrings(str(key) for key in images.ids[pictures]),
        sizes=sizes[pictures],
        sources=images.sources.select(pictures),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
        numbers=_view(objects.numbers)[rows],
        kinds=chosen.kinds[order],
        names=tuple(names.values()),
        boxes=boxes[: len(rows)],
        difficult=np.zeros(len(rows), np.bool_),
        crowd=_view(objects.crowd)[rows].astype(np.bool_),
        areas=areas,
    )


def _is_id(value: Any) -> bool:
    return type(value) is int and -_MAX_ID <= value < _MAX_ID


def _view(values: array[Any]) -> NDArray[Any]:
    return np.asarray(memoryview(values))


def _floats(values: Any) -> list[float]:
    """JSON numbers as floats; empty if `values` isn't a list of numbers."""
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return []
    try:
        return [float(v) for v in values]
    except OverflowError:  # a whole number of hundreds of digits
        return []
