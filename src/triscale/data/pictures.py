"""Pictures from disk: decoded to RGB arrays, or only their size from the header.

Both answers must agree: a picture is turned as its EXIF orientation says (that is how people saw it
when they drew the boxes), and a file that is cut short is refused, because decoders may fill the
missing part with grey and say nothing. For JPEG (ITU T.81, annex B) and PNG (W3C PNG, chapter 5) we
walk the file's segments ourselves: it answers all of this in one pass and takes microseconds. Other
formats are rare in detection data; Pillow reads their headers.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from triscale.data.root import DataRoot
from triscale.errors import UserError
from triscale.files import open_regular, read_regular

# The limit at which Pillow, too, speaks of a decompression bomb: 0.5 GiB of RGB.
MAX_PIXELS = 178_956_970
MAX_PICTURE_BYTES = 1 << 30
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# What Pillow raises for damaged headers of BMP, WebP and TIFF, and our own.
_HEADER_ERRORS = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError),
    *(struct.error, SyntaxError, EOFError, Image.DecompressionBombError),
)
# As stored: OpenCV turns WebP since 4.13 only (pull request 27503), and may read EXIF differently.
_WHOLE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# OpenCV's modes have a bit for BGR that contradicts the one for RGB.
_REDUCED = {
    1: _WHOLE,
    2: _WHOLE | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: _WHOLE | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: _WHOLE | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112
# cv2.flip's code for what is to be mirrored, after rows and columns were swapped for 5..8
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these three are tables
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
# Far above what occurs: a header may not take seconds to walk.
_MAX_SEGMENTS, _MAX_STRAY_BYTES, _MAX_CHUNKS = 2_000, 4_096, 1_000_000
# Bytes of a value of each type of TIFF 6.0, section 2; 8 for what came later.
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def is_picture(path: Path) -> bool:
    """Whether `path` is a file that is named like a picture."""
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def read_picture(path: Path, *, reduction: int = 1) -> NDArray[np.uint8]:
    """The picture as (H, W, 3) RGB, turned upright; UserError if it can't be decoded whole.

    With a `reduction` of 2, 4 or 8 it has ceil(H / reduction) rows, and columns alike, each pixel
    standing for a square of as many: an upright JPEG is decoded at that size, for a third of the
    time.
    """
    return decode_picture(
        read_regular(path, limit=MAX_PICTURE_BYTES), str(path), reduction=reduction
    )


def encoded_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) of the upright picture in a file's content, from its header; `name` stands
    in a UserError if there is none."""
    return _size(io.BytesIO(data), name)


def decode_picture(data: bytes, name: str, *, reduction: int = 1) -> NDArray[np.uint8]:
    """`read_picture` of a file's content; `name` stands in errors."""
    stream = io.BytesIO(data)
    size, orientation = _header(stream, name)  # leaves a JPEG's stream where the scan starts
    jpeg = data.startswith(_JPEG)
    if jpeg and data.rfind(b"\xff\xd9", stream.tell()) < 0:
        raise UserError(f"{name}: the JPEG is cut short (no end-of-image marker)")
    # What is turned after it was reduced would have its incomplete squares at the wrong side.
    early = jpeg and orientation in (0, 1)
    mode = _REDUCED[reduction] if early else _WHOLE
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error as error:
        raise UserError(f"{name}: the picture can't be decoded ({error.err})") from error
    if image is None:  # pyright: ignore[reportUnnecessaryComparison]  # OpenCV's stub is wrong
        raise UserError(f"{name}: the picture can't be decoded (corrupt, or not a picture)")
    image = _upright(image, orientation)
    if image.shape[:2] != (reduced(size, reduction) if early else size):  # a damaged header
        raise UserError(f"{name}: decodes to (height, width) {image.shape[:2]}, header says {size}")
    return np.asarray(image if early else _averaged(image, reduction), np.uint8)


def reduced(size: tuple[int, int], reduction: int) -> tuple[int, int]:
    """What (height, width) becomes when `reduction` rows and columns become one."""
    return -(-size[0] // reduction), -(-size[1] // reduction)


def _upright(image: MatLike, orientation: int) -> MatLike:
    """A picture as it was stored, turned as TIFF 6.0 (page 36) and EXIF define orientations."""
    if orientation in (5, 6, 7, 8):
        image = cv2.transpose(image)
    flip = _FLIPS.get(orientation)
    return image if flip is None else cv2.flip(image, flip, image)  # in its place


def _averaged(image: MatLike, reduction: int) -> MatLike:
    if reduction == 1:
        return image
    bottom, right = -image.shape[0] % reduction, -image.shape[1] % reduction
    image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    height, width = reduced((image.shape[0], image.shape[1]), reduction)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright picture from its header; UserError if there is none."""
    (size,) = picture_sizes([path])
    if isinstance(size, UserError):
        raise size
    return size


def picture_sizes(
    paths: Sequence[Path], root: DataRoot | None = None
) -> list[tuple[int, int] | UserError]:
    """`picture_size` of many files; what is wrong with a file stands in its place.

    Raises UserError for a picture that lies outside of `root`.
    """
    blocks = [paths[i : i + 64] for i in range(0, len(paths), 64)]
    # Threads hide the latency of network disks. Warning filters belong to the process, so what the
    # threads do to them in `_other_header` is undone out here, and what one of them restores
    # while another one is at work must be silence.
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("ignore")
        parts = pool.map(_sizes, blocks, repeat(root))
        return [size for part in parts for size in part]


def _sizes(paths: Sequence[Path], root: DataRoot | None) -> list[tuple[int, int] | UserError]:
    sizes: list[tuple[int, int] | UserError] = []
    for path in paths:
        if root:
            root.require(path)
        try:
            with open_regular(path, limit=MAX_PICTURE_BYTES) as stream:
                sizes.append(_size(stream, path))
        except OSError as error:
            sizes.append(UserError(f"{path}: can't be read ({error.strerror})"))
        except UserError as error:
            sizes.append(error)
    return sizes


def _size(stream: BinaryIO, path: Path | str) -> tuple[int, int]:
    """(height, width) of the upright picture in `stream`, which is at its start."""
    return _header(stream, path)[0]


def _header(stream: BinaryIO, path: Path | str) -> tuple[tuple[int, int], int]:
    """The size, and the EXIF orientation: 0 where none is stated."""
    magic = stream.read(8)
    stream.seek(0)
    if not magic:
        raise UserError(f"{path}: the file is empty")
    try:
        if magic.startswith(_JPEG):
            height, width, orientation = _jpeg_header(stream)
        elif magic == _PNG:
            height, width, orientation = _png_header(stream)
        else:
            height, width, orientation = _other_header(stream)
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture: no JPEG, PNG, BMP, WebP or TIFF file") from error
    except _HEADER_ERRORS as error:
        raise UserError(f"{path}: not a picture that can be read ({error})") from error
    if not 0 < height * width <= MAX_PIXELS:
        raise UserError(
            f"{path}: the header says {width}x{height} pixels; "
            f"expected at least 1 and at most {MAX_PIXELS:,}"
        )
    size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    return size, orientation


def _jpeg_header(stream: BinaryIO) -> tuple[int, int, int]:
    """(height, width, orientation); leaves the stream at the start-of-scan marker's payload."""
    height = width = orientation = 0
    stream.seek(2)
    for _ in range(_MAX_SEGMENTS):
        marker = _next_marker(stream)
        if marker == _START_OF_SCAN:
            return height, width, orientation
        if marker == _END_OF_IMAGE:
            raise ValueError("JPEG without a picture in it")
        if marker in _STANDALONE:
            continue
        (length,) = struct.unpack(">H", stream.read(2))
        end = stream.tell() + max(length - 2, 0)
        if marker in _START_OF_FRAME:
            height, width = struct.unpack(">xHH", stream.read(5))
        elif marker == _APP1 and not orientation:
            orientation = _jpeg_orientation(stream.read(length - 2) if length > 2 else b"")
        stream.seek(end)
    raise ValueError(f"JPEG with more than {_MAX_SEGMENTS:,} segments in its header")


def _next_marker(stream: BinaryIO) -> int:
    """The code of the next marker; bytes that don't belong are passed over, as libjpeg does."""
    previous = 0
    for _ in range(_MAX_STRAY_BYTES):
        byte = stream.read(1)
        if not byte:
            raise ValueError("JPEG cut short in its header")
        if previous == 0xFF and byte[0] not in (0, 0xFF):
            return byte[0]
        previous = byte[0]
    raise ValueError(f"JPEG with {_MAX_STRAY_BYTES:,} bytes between the segments of its header")


def _jpeg_orientation(payload: bytes) -> int:
    return _orientation(payload[6:]) if payload.startswith(b"Exif\0\0") else 0


def _png_header(stream: BinaryIO) -> tuple[int, int, int]:
    """(height, width, orientation); goes to the end because EXIF may stand after the pixels."""
    height = width = orientation = 0
    stream.seek(len(_PNG))
    for number in range(_MAX_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            raise ValueError("PNG cut short (no IEND)")
        length, kind = struct.unpack(">I4s", head)
        end = stream.tell() + length + 4  # 4: the checksum
        if (kind == b"IHDR") != (number == 0):  # decoders take the first one
            raise ValueError("PNG whose IHDR is not the first chunk and the only one")
        if kind == b"IHDR":
            width, height = struct.unpack(">II", stream.read(8))
        elif kind == b"eXIf":
            orientation = _orientation(stream.read(min(length, 1 << 16)))
        elif kind == b"IEND":
            return height, width, orientation
        stream.seek(end)
    raise ValueError(f"PNG with more than {_MAX_CHUNKS:,} chunks")


def without_orientation(jpeg: bytes) -> bytes:
    """A JPEG whose EXIF says that it is upright as it is stored; all else stays."""
    start = jpeg.find(b"Exif\0\0") + 6
    found = _orientation_entry(jpeg[start : start + (1 << 16)]) if start >= 6 else None
    if found is None:
        return jpeg
    order, entry = found
    place = start + entry + 8  # behind tag, type and count
    return jpeg[:place] + struct.pack(order + "H", 1) + jpeg[place + 2 :]


def _orientation(tiff: bytes) -> int:
    """EXIF's orientation tag, 1..8, from a TIFF block; 0 if it has none."""
    found = _orientation_entry(tiff)
    if found is None:
        return 0
    order, entry = found
    return struct.unpack_from(order + "8xH", tiff, entry)[0]


def _orientation_entry(tiff: bytes) -> tuple[str, int] | None:
    """The byte order of a TIFF block (TIFF 6.0, section 2), and where its orientation stands."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return None
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return None
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        if struct.unpack_from(order + "H", tiff, entry)[0] == _EXIF_ORIENTATION:
            return order, entry
    return None


def _other_header(stream: BinaryIO) -> tuple[int, int, int]:
    _require_plain_tiff(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # huge pictures (checked by the caller), odd EXIF
        with Image.open(stream, formats=("BMP", "WEBP", "TIFF")) as image:
            width, height = image.size
            # Pillow turns a TIFF's size by itself.
            orientation = 0 if image.format == "TIFF" else image.getexif().get(_EXIF_ORIENTATION, 0)
            return height, width, orientation


def _require_plain_tiff(stream: BinaryIO) -> None:
    """ValueError for a TIFF whose tags say to be longer than the file: libtiff loads them all, so
    thousands that name the same bytes fill the memory."""
    head = stream.read(8)
    order = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "", b"MM\0+": ""}.get(head[:4])
    if order == "":
        raise ValueError("BigTIFF")
    if order:
        (start,) = struct.unpack(order + "4xI", head)
        stream.seek(start)
        (count,) = struct.unpack(order + "H", stream.read(2))
        entries = stream.read(12 * count)
        tags = struct.iter_unpack(order + "2xHI4x", entries[: len(entries) // 12 * 12])
        claimed = sum(number * _TIFF_BYTES.get(kind, 8) for kind, number in tags)
        if claimed > stream.seek(0, os.SEEK_END):
            raise ValueError("TIFF whose tags are longer than the file")
    stream.seek(0)
