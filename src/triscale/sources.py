"""What the words after `triscale predict WEIGHTS` mean: pictures, videos, cameras, streams."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.data.pictures import is_picture, read_picture
from triscale.errors import UserError
from triscale.video import VIDEO_SUFFIXES, VideoReader


class Source(NamedTuple):
    """One picture, or one thing that has many."""

    kind: Literal["picture", "video", "live"]
    name: str  # for people and for results: a path, `camera:0`, an address
    place: Path | int | str  # what is opened: a file, the number of a camera, an address

    @property
    def stem(self) -> str:
        """What the files made from it are called."""
        if isinstance(self.place, Path):
            return self.place.stem
        return re.sub(r"\W+", "-", re.sub(r"^\w+://", "", self.name)).strip("-")


class Shot(NamedTuple):
    """A picture, or a frame of a video."""

    source: Source
    stem: str  # what the files made from its source are called, different for each
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    frame: int = 0  # of a video or camera: its number, from 0
    time_ms: float = 0.0  # and its time
    rate: float = 0.0  # and how many of its shots are a second


def find_sources(words: Sequence[str]) -> list[Source]:
    """The pictures, videos, cameras and streams that are meant; UserError if a word means none.

    A file or folder goes first: a number is a camera only if there is none of that name.
    """
    found: list[Source] = []
    for word in words:
        path = Path(word)
        if re.match(r"(rtsps?|rtmps?|https?|udp|tcp)://", word):
            shown = re.sub(r"//[^/@]*@", "//", word)  # without the password
            inside = [Source("live", shown, word)]
        elif path.is_dir():
            inside = [_file(p) for p in sorted(path.rglob("*")) if is_picture(p) or is_video(p)]
        elif path.exists():  # named outright: reading it says what is wrong with it
            inside = [_file(path)]
        elif number := re.fullmatch(r"(?:camera:)?([0-9]{1,3})", word):
            inside = [Source("live", f"camera:{number[1]}", int(number[1]))]
        else:
            matches = (Path(p) for p in sorted(glob.glob(word, recursive=True)))
            inside = [_file(p) for p in matches if is_picture(p) or is_video(p)]
        if not inside:
            raise UserError(
                f"{word}: no picture or video found (expected a file, a folder, a pattern, a "
                "camera such as camera:0, or the address of a stream)"
            )
        found.extend(inside)
    return found


def is_video(path: Path) -> bool:
    """Whether `path` is a file that is named like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _file(path: Path) -> Source:
    return Source("video" if is_video(path) else "picture", str(path), path)


def unique_stems(sources: Sequence[Source]) -> list[str]:
    """A name without suffix for the files made from each; equal ones get a number."""
    taken: set[str] = set()
    names: list[str] = []
    for source in sources:
        name, number = source.stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{source.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def read_shots(
    sources: Sequence[Source],
    *,
    every: int,
    failed: Callable[[UserError], None],
    warn: Callable[[str], None],
) -> Generator[Shot]:
    """All pictures and each `every`-th frame, in order.

    A source that can't be read is reported to `failed` and passed over. What ends before its time
    is kept as far as it goes, and said to `warn`.
    """
    for source, stem in zip(sources, unique_stems(sources), strict=True):
        try:
            if source.kind == "picture":
                yield Shot(source, stem, read_picture(Path(str(source.place))))
            else:
                yield from _video_shots(source, stem, every=every, warn=warn)
        except UserError as error:
            failed(error)


def _video_shots(
    source: Source, stem: str, *, every: int, warn: Callable[[str], None]
) -> Generator[Shot]:
    with closing(VideoReader(source.place, name=source.name, every=every)) as reader:
        for image, number, time_ms in reader:
            yield Shot(source, stem, image, number, time_ms, reader.rate)
        if reader.stated is not None and reader.done < reader.stated:
            warn(
                f"{source.name}: ended after {reader.done} frames; its header says "
                f"{reader.stated} (cut short?)"
            )


def count_shots(sources: Sequence[Source], *, every: int) -> int | None:
    """How many shots there will be, as far as headers know; None if there is no end."""
    total = 0
    for source in sources:
        if source.kind == "live":
            return None
        if source.kind == "picture":
            total += 1
            continue
        try:
            with closing(VideoReader(source.place, name=source.name)) as reader:
                total += -(-(reader.stated or 0) // every)
        except UserError:  # reading it will tell
            pass
    return total
