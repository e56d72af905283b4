"""What `triscale predict` writes, each kind a class with `add` and `close`.

All of them write as they go, so that whatever ends the work, what was found until then is there:
`close` makes the file whole.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from triscale.data.classes import COCO_CLASSES, class_numbers
from triscale.detections import Detections
from triscale.draw import write_picture
from triscale.errors import UserError
from triscale.files import flush, naming, write_atomically
from triscale.sources import Shot, Source, unique_stems
from triscale.video import VideoWriter

# COCO's 80 classes have the numbers 1 to 90 of its 91 planned ones, without these.
_COCO_IDS = tuple(sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))


class Output(Protocol):
    """Takes each shot with its detections."""

    def add(self, shot: Shot, found: Detections) -> None:
        """Write what was found in one picture or frame."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...

    def summary(self) -> str:
        """A line for people, or nothing."""
        ...


class Drawings:
    """Pictures and MP4 videos with boxes in a folder."""

    def __init__(self, folder: Path, sources: Sequence[Source]) -> None:
        self.pictures = self.videos = 0
        self._folder = folder
        self._video: VideoWriter | None = None
        self._video_of = ""
        names = map(_drawn_name, sources, unique_stems(sources))
        targets = {(folder / name).resolve() for name in names}
        for source in sources:
            if isinstance(source.place, Path) and source.place.resolve() in targets:
                raise UserError(
                    f"{source.name}: would be replaced; choose another folder than --out {folder}"
                )
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, shot: Shot, found: Detections) -> None:
        path = self._folder / _drawn_name(shot.source, shot.stem)
        drawn = found.draw(shot.image)
        if shot.source.kind == "picture":
            write_picture(path, drawn)
            self.pictures += 1
            return
        if self._video is None or self._video_of != shot.stem:
            self.close()
            self._video, self._video_of = VideoWriter(path, rate=shot.rate), shot.stem
        # Of a camera we see the frames that there is time for: the gaps are filled, or the video
        # would run too fast.
        due = round(shot.time_ms / 1000 * shot.rate) if shot.source.kind == "live" else 0
        for _ in range(max(1, due - self._video.frames)):
            self._video.write(drawn)

    def close(self) -> None:
        if self._video is not None:
            video, self._video = self._video, None
            video.close()
            self.videos += 1

    def summary(self) -> str:
        counts = {"picture": self.pictures, "video": self.videos}
        told = [f"{n} drawn {what}{'s'[: n != 1]}" for what, n in counts.items() if n]
        return f"{' and '.join(told) or 'nothing drawn'} in {self._folder}"


class JsonLines:
    """One JSON object per picture or frame, through `write`."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def add(self, shot: Shot, found: Detections) -> None:
        size = [shot.image.shape[1], shot.image.shape[0]]
        if shot.source.kind == "picture":
            record: dict[str, Any] = {"image": shot.source.name, "size": size}
        else:
            record = {"video": shot.source.name, "size": size, "frame": shot.frame}
            record["time_ms"] = shot.time_ms
        self._write(json.dumps({**record, "detections": found.to_dicts()}))

    def close(self) -> None:
        pass

    def summary(self) -> str:
        return ""


class Table:
    """For people: a row per object of a picture, a line per video, through `write`."""

    def __init__(
        self, write: Callable[[str], None], sources: Sequence[Source], classes: Sequence[str]
    ) -> None:
        names = [source.name for source in sources if source.kind == "picture"]
        self._widths = (max(map(len, ["picture", *names])), max(map(len, ["label", *classes])), 5)
        self._write, self._begun = write, False
        self._video: Shot | None = None
        self._frames, self._counts = 0, Counter[str]()

    def add(self, shot: Shot, found: Detections) -> None:
        if shot.source.kind == "picture":
            self.close()
            if not self._begun:
                self._row("picture", "label", "score", "x1 y1 x2 y2")
                self._begun = True
            for one in found:
                box = " ".join(f"{side:.0f}" for side in one.box)
                self._row(shot.source.name, one.name, f"{one.score:.3f}", box)
            if not found:
                self._row(shot.source.name, "-", "", "")
            return
        if self._video is None or self._video.stem != shot.stem:
            self.close()
        self._video = shot
        self._frames += 1
        self._counts.update(found.names)

    def close(self) -> None:
        if self._video is not None:
            counts = [f"{name} {count}" for name, count in self._counts.most_common()]
            objects = ", ".join(counts) or "no objects"
            frames = f"{self._frames} frame{'s'[: self._frames != 1]}"
            self._write(f"{self._video.source.name}: {frames}: {objects}")
        self._video, self._frames, self._counts = None, 0, Counter()

    def summary(self) -> str:
        return ""

    def _row(self, *cells: str) -> None:
        widths = (*self._widths, 0)
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        self._write("  ".join(padded).rstrip())


class CocoResults:
    """A COCO results file, and beside it which picture and which category each number means."""

    def __init__(self, path: Path, sources: Sequence[Source], classes: tuple[str, ...]) -> None:
        self._ids = _coco_picture_ids(sources)
        self._category_ids = coco_category_ids(classes)
        self._path, self._next = path, 1
        pairs = zip(self._category_ids, classes, strict=True)
        categories = json.dumps([{"id": i, "name": name} for i, name in pairs])
        self._results = _JsonList(path, "[", "]\n")
        self._pictures = _JsonList(
            coco_pictures_path(path), '{"images": [', f'], "categories": {categories}}}\n'
        )

    def add(self, shot: Shot, found: Detections) -> None:
        number = self._ids[shot.source.name] if self._ids else self._next
        self._next += 1
        picture: dict[str, Any] = {"id": number, "file_name": shot.source.name}
        picture |= {"width": shot.image.shape[1], "height": shot.image.shape[0]}
        if shot.source.kind != "picture":
            picture |= {"frame": shot.frame, "time_ms": shot.time_ms}
        self._pictures.add(picture)
        for row in found.to_coco(number, category_ids=self._category_ids):
            self._results.add(row)

    def close(self) -> None:
        try:
            self._results.close()
        except OSError:
            self._pictures.discard()  # which mean nothing alone
            raise
        self._pictures.close()

    def summary(self) -> str:
        return f"COCO results in {self._path}, their pictures in {coco_pictures_path(self._path)}"


class YoloFiles:
    """A text file per picture or frame, and `classes.txt` with the names."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        if any(folder.glob("*.txt")):
            raise UserError(f"{folder}: holds text files already; choose a new folder for --yolo")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._write("classes", "".join(f"{name}\n" for name in classes))

    def add(self, shot: Shot, found: Detections) -> None:
        number = "" if shot.source.kind == "picture" else f"-{shot.frame:06d}"
        height, width = shot.image.shape[:2]
        self._write(f"{shot.stem}{number}", found.to_yolo((height, width)))

    def close(self) -> None:
        pass

    def summary(self) -> str:
        return f"YOLO files in {self._folder}"

    def _write(self, stem: str, text: str) -> None:
        write_atomically(self._folder / f"{stem}.txt", text.encode())


class _JsonList:
    """A JSON list in a file, an item a line, that takes its name when it is closed."""

    def __init__(self, path: Path, head: str, tail: str) -> None:
        self._path, self._tail = path, tail
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with naming(path, self._temporary):
            self._file = self._temporary.open("w", encoding="utf-8")
        self._file.write(head)
        self._separator = "\n"

    def add(self, item: dict[str, Any]) -> None:
        with naming(self._path, self._temporary):
            self._file.write(self._separator + json.dumps(item))
        self._separator = ",\n"

    def close(self) -> None:
        with naming(self._path, self._temporary):
            try:
                with self._file as file:
                    file.write(self._tail)
                flush(self._temporary)
                self._temporary.replace(self._path)
            except OSError:
                self.discard()
                raise

    def discard(self) -> None:
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def coco_pictures_path(path: Path) -> Path:
    """What explains the numbers of a COCO results file: `found.json` -> `found.images.json`."""
    return path.with_name(f"{path.stem}.images.json")


def coco_category_ids(classes: Sequence[str]) -> tuple[int, ...]:
    """COCO's own numbers if these are its 80 classes, by whichever names; else 1, 2, ..."""
    numbers = class_numbers(classes, COCO_CLASSES)
    if set(numbers.values()) == set(range(len(COCO_CLASSES))) and len(classes) == len(numbers):
        return tuple(_COCO_IDS[numbers[name]] for name in classes)
    return tuple(range(1, len(classes) + 1))


def _coco_picture_ids(sources: Sequence[Source]) -> dict[str, int]:
    """The numbers in the names of the pictures, as COCO's have them; empty unless all have one and
    no two the same."""
    if any(s.kind != "picture" or not re.fullmatch("[0-9]{1,15}", s.stem) for s in sources):
        return {}
    ids = {source.name: int(source.stem) for source in sources}
    return ids if len(set(ids.values())) == len(sources) else {}


def _drawn_name(source: Source, stem: str) -> str:
    if source.kind != "picture" or not isinstance(source.place, Path):
        return f"{stem}.mp4"
    suffix = source.place.suffix
    return f"{stem}{suffix if suffix.lower() in ('.jpg', '.jpeg', '.png') else '.jpg'}"
