"""MXNet's `.params` files without MXNet: a list of arrays, then the list of their names.

All little endian: u64 0x112, u64 reserved, u64 number of arrays, the arrays, u64 number of names,
and each name as u64 length and bytes. An array is, depending on the version of MXNet that wrote it,

    V2, V3: u32 magic, i32 storage, i32 ndim, ndim i64 sides, i32 device, i32 number, i32 type, data
    V1:     u32 magic,              i32 ndim, ndim i64 sides, and so on
    older:                          u32 ndim, ndim u32 sides, and so on

Source: `NDArray::Save` and `NDArray::Load` of MXNet 1.9.1 (src/ndarray/ndarray.cc) for the layout,
mshadow/base.h for the types. No number in a file is believed before it has been held against the
bytes that are left, so a damaged or hostile file costs no more memory than its size.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triscale.errors import UserError
from triscale.files import replace_atomically

_LIST_MAGIC = struct.pack("<Q", 0x112)
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_TYPES = ("<f4", "<f8", "<f2", "|u1", "<i4", "|i1", "<i8", "|b1")  # by MXNet's type number
_BFLOAT16 = 12
_STORAGES = {1: "row-sparse", 2: "CSR-sparse"}
_MIN_ARRAY = 21  # bytes of the smallest one: one byte, as written before V1
_MAX_NDIM = 32  # what every numpy can hold


def read_ndarrays(path: Path) -> dict[str, NDArray[Any]]:
    """The named arrays of a `.params` file, in the file's order.

    Raises UserError when the file can't be read, is none, is damaged or holds what we don't read.
    """
    try:
        with path.open("rb") as file:
            return _read_list(_Source(path, file))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error


def write_ndarrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as MXNet 1.9 does, atomically; none of them may be a scalar or empty."""
    for name, array in arrays.items():
        assert min(array.shape, default=0) > 0, name  # V2 can say neither
    replace_atomically(path, lambda temporary: _write_list(temporary, arrays))


class _Source:
    """An open file that knows how many bytes are left of it."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.path = path
        self.file = file
        self.left = os.fstat(file.fileno()).st_size

    def error(self, what: str, expected: object, found: object) -> UserError:
        return UserError(f"{self.path}: {what}: expected {expected}, found {found}")

    def claim(self, size: int, what: str) -> None:
        """Count `size` bytes as read; UserError unless there are as many."""
        if size > self.left:
            found = f"{self.left} (the file is cut off or damaged)"
            raise self.error(what, f"{size} more bytes", found)
        self.left -= size

    def take(self, size: int, what: str) -> bytes:
        self.claim(size, what)
        data = self.file.read(size)
        if len(data) < size:  # somebody else shortens the file
            raise self.error(what, f"{size} more bytes", len(data))
        return data

    def numbers(self, code: str, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))


def _read_list(source: _Source) -> dict[str, NDArray[Any]]:
    magic = source.take(min(8, source.left), "first bytes")
    if magic != _LIST_MAGIC:
        expected = f"{_LIST_MAGIC.hex(' ')} (a .params file of MXNet)"
        raise source.error("first bytes", expected, magic.hex(" ") or "none")
    _, count = source.numbers("QQ", "number of arrays")
    if count > source.left // _MIN_ARRAY:
        most = f"at most {source.left // _MIN_ARRAY} in a file of this size"
        raise source.error("number of arrays", most, count)
    arrays = [_read_array(source, f"array {i} of {count}") for i in range(count)]
    names = _read_names(source, count)
    if source.left:
        raise source.error("after the last name", "the end of the file", f"{source.left} bytes")
    return dict(zip(names, arrays, strict=True))


def _read_names(source: _Source, count: int) -> dict[str, None]:
    (found,) = source.numbers("Q", "number of names")
    if found != count:
        hint = "; a file written from a list has none" if found == 0 else ""
        raise source.error("number of names", f"{count}, one for each array", f"{found}{hint}")
    names: dict[str, None] = {}
    for i in range(count):
        what = f"name {i} of {count}"
        (length,) = source.numbers("Q", what)
        raw = source.take(length, what)
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise source.error(what, "UTF-8", _short(raw)) from error
        if name in names:
            raise source.error(what, "another name than those before", _short(name))
        names[name] = None
    return names


def _read_array(source: _Source, what: str) -> NDArray[Any]:
    (magic,) = source.numbers("I", what)
    if magic in (_V2, _V3):
        (storage,) = source.numbers("i", f"{what}, storage")
        if storage != 0:
            found = f"{_STORAGES.get(storage, 'unknown')} storage ({storage})"
            raise source.error(what, "dense storage (0)", found)
    if magic in (_V1, _V2, _V3):
        (ndim,), side_code = source.numbers("i", f"{what}, number of dimensions"), "q"
    else:
        ndim, side_code = magic, "I"
    # Only V3 has scalars; elsewhere 0 (in V3: -1) stands for an array that was never filled.
    least = 0 if magic == _V3 else 1
    if not least <= ndim <= _MAX_NDIM:
        found = f"{ndim} (magic {magic:#010x})"
        raise source.error(f"{what}, number of dimensions", f"{least} to {_MAX_NDIM}", found)
    shape = source.numbers(f"{ndim}{side_code}", f"{what}, shape")
    if min(shape, default=1) < 1:
        raise source.error(what, "sides of at least 1", f"shape {shape}")
    _, _, flag = source.numbers("3i", f"{what}, device and type")  # where it was doesn't matter
    if not 0 <= flag < len(_TYPES):
        known = ", ".join(np.dtype(t).name for t in _TYPES)
        found = f"bfloat16 ({flag}); cast it to float32 in MXNet" if flag == _BFLOAT16 else flag
        raise source.error(f"{what}, type", known, found)
    size = math.prod(shape) * np.dtype(_TYPES[flag]).itemsize
    source.claim(size, f"{what}, data of shape {shape}")
    array: NDArray[Any] = np.empty(shape, _TYPES[flag])
    if source.file.readinto(array.reshape(-1).view(np.uint8).data) < size:
        raise source.error(what, f"{size} bytes", "fewer")
    return array


def _write_list(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:
        file.write(_LIST_MAGIC + struct.pack("<QQ", 0, len(arrays)))
        for array in arrays.values():
            head = (_V2, 0, array.ndim, *array.shape)
            device = (1, 0)  # the first CPU
            flag = _TYPES.index(array.dtype.str)
            file.write(struct.pack(f"<Iii{array.ndim}q3i", *head, *device, flag))
            file.write(np.ascontiguousarray(array).data)
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            raw = name.encode()
            file.write(struct.pack("<Q", len(raw)) + raw)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
