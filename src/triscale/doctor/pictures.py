"""One look at each picture, in as many processes as there are cores.

A picture is decoded as training decodes it, by `read_picture`, whose judgement is the only one. A
JPEG is decoded at a part of its size: all of its data is read for that, so that a file that is cut
short is found as well, in a fraction of the time. libjpeg fills what it can't read with grey and
says so on stderr only; what it says is caught there. Pillow's header tells how the file stores its
pixels.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triscale.data.pictures import MAX_PICTURE_BYTES, read_picture
from triscale.errors import UserError
from triscale.files import read_regular

THUMB = 32  # side of the small grey picture that stands for it in comparisons
_PER_TASK = 32  # pictures that a process takes at once
_COMPLAINTS = (b"Corrupt JPEG", b"Premature end")  # of libjpeg's jerror.h; others are harmless
_FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}


class Look(NamedTuple):
    """What is known about a picture file."""

    error: str = ""  # why training could not read it
    complaint: str = ""  # what the decoder said, though it went on
    digest: bytes = b""  # of the file
    kinds: tuple[str, ...] = ()  # findings about the way it is stored: "grey-picture", ...
    thumb: NDArray[np.uint8] | None = None  # (THUMB, THUMB) grey


def look_at_all(
    paths: Sequence[str], *, workers: int, advance: Callable[[int], object] = lambda _: None
) -> list[Look]:
    """A look at each file, by `workers` processes (0: this one); `advance` hears how many more."""
    parts = [paths[i : i + _PER_TASK] for i in range(0, len(paths), _PER_TASK)]
    if not workers or len(parts) < 2:
        return _gather(map(_look_at_some, parts), advance)
    # "spawn": a process with threads, as torch and the progress bar have them, can't fork safely
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(parts)), context, _begin) as pool:
        try:
            return _gather(pool.map(_look_at_some, parts), advance)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def look_at(path: str) -> Look:
    """A look at one file."""
    try:
        data = read_regular(Path(path), limit=MAX_PICTURE_BYTES)
        kinds, reduction = _stored_as(data, Path(path))
        with decoder_complaints() as said:
            image = read_picture(Path(path), reduction=reduction)
    except UserError as error:
        return Look(error=str(error).removeprefix(f"{path}: "))
    small = cv2.resize(image, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    thumb = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return Look("", said[0] if said else "", digest, kinds, thumb)


def _gather(parts: Iterable[list[Look]], advance: Callable[[int], object]) -> list[Look]:
    looks: list[Look] = []
    for part in parts:
        looks += part
        advance(len(part))
    return looks


def _begin() -> None:
    cv2.setNumThreads(1)


def _look_at_some(paths: Sequence[str]) -> list[Look]:
    return [look_at(path) for path in paths]


def _stored_as(data: bytes, path: Path) -> tuple[tuple[str, ...], int]:
    """The kinds of findings that the header gives, and how much smaller it may be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=tuple(_FORMATS)) as image:
                raw = str(image.tile[0][3]) if image.tile else ""
                orientation = image.getexif().get(0x0112, 0)
                mode, format, sides = image.mode, str(image.format), image.size
                alpha = mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    except Exception:  # whatever Pillow raises: `read_picture` decides what is broken
        return (), 1
    facts = {
        "turned-picture": 2 <= orientation <= 8,
        "grey-picture": mode in ("1", "L", "LA") or mode.startswith("I"),
        "cmyk-picture": mode == "CMYK",
        "deep-picture": "16" in raw or mode.startswith("I;16"),
        "palette-picture": mode in ("P", "PA"),
        "alpha-picture": alpha,
        "misnamed-picture": path.suffix.lower() not in _FORMATS.get(format, ()),
    }
    reduction = next((r for r in (8, 4, 2) if min(sides) >= 2 * THUMB * r), 1)
    return tuple(kind for kind, found in facts.items() if found), reduction


@contextmanager
def decoder_complaints() -> Generator[list[str]]:
    """A list that holds, at the end, what libjpeg said on stderr in between about damaged data."""
    said: list[str] = []
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines = [
                line for line in file.read(1 << 16).splitlines() if line.startswith(_COMPLAINTS)
            ]
            said += [line.decode("utf-8", "replace").strip() for line in lines]
