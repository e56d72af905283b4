"""The `.params` reader and writer: MXNet's own files, older layouts, and bytes that are no file."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.fuzz.watching import peak_memory
from triscale.errors import UserError
from triscale.weights.mxnet import read_ndarrays, write_ndarrays

V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DATA = struct.pack("<6f", *range(6))
CPU_F32 = struct.pack("<3i", 1, 0, 0)
ARRAY = struct.pack("<Iii2q", V2, 0, 2, 2, 3) + CPU_F32 + DATA  # (2, 3) float32


def name(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def params(*arrays: bytes, names: tuple[bytes, ...] = (b"a",), tail: bytes = b"") -> bytes:
    """A list file, written out by hand from the layout that SPEC.md item 47 gives."""
    head = struct.pack("<QQQ", 0x112, 0, len(arrays))
    return (
        head + b"".join(arrays) + struct.pack("<Q", len(names)) + b"".join(map(name, names)) + tail
    )


def array(dtype: int, data: bytes, *shape: int) -> bytes:
    return struct.pack(f"<Iii{len(shape)}q3i", V2, 0, len(shape), *shape, 1, 0, dtype) + data


def read(tmp_path: Path, content: bytes) -> dict[str, NDArray[np.generic]]:
    path = tmp_path / "x.params"
    path.write_bytes(content)
    return read_ndarrays(path)


@pytest.mark.golden
@pytest.mark.parametrize("file", ["tiny_golden", "yolo3_mobilenet0.25_voc_golden"])
def test_files_of_the_reference_come_back_byte_for_byte(
    golden: Path, tmp_path: Path, file: str
) -> None:
    original = golden / f"{file}.params"
    arrays = read_ndarrays(original)
    assert list(arrays["yolo_outputs.1.anchors"].ravel()) == [30, 61, 62, 45, 59, 119]
    write_ndarrays(tmp_path / "copy.params", arrays)
    assert (tmp_path / "copy.params").read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    ("dtype", "flag"),
    [("f4", 0), ("f8", 1), ("f2", 2), ("u1", 3), ("i4", 4), ("i1", 5), ("i8", 6), ("?", 7)],
)
def test_every_type(tmp_path: Path, dtype: str, flag: int) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    content = params(array(flag, values.tobytes(), 2, 3))
    got = read(tmp_path, content)["a"]
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)
    write_ndarrays(tmp_path / "again.params", {"a": got})
    assert (tmp_path / "again.params").read_bytes() == content


def test_an_empty_list(tmp_path: Path) -> None:
    content = params(names=())
    assert read(tmp_path, content) == {}
    write_ndarrays(tmp_path / "again.params", {})
    assert (tmp_path / "again.params").read_bytes() == content


def test_order_names_and_views(tmp_path: Path) -> None:
    """Names in any script, in the order given; an array that isn't contiguous in memory."""
    values = np.arange(6, dtype=np.float32).reshape(3, 2).T
    write_ndarrays(tmp_path / "x.params", {"z": values[:1], "ä.1": values})
    got = read_ndarrays(tmp_path / "x.params")
    assert list(got) == ["z", "ä.1"]
    np.testing.assert_array_equal(got["ä.1"], [[0, 2, 4], [1, 3, 5]])
    got["z"][0, 0] = 7  # the arrays are the caller's own


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (struct.pack("<Iii2q", V3, 0, 2, 2, 3), (2, 3)),
        (struct.pack("<Ii2q", V1, 2, 2, 3), (2, 3)),
        (struct.pack("<I2I", 2, 2, 3), (2, 3)),
        (struct.pack("<I4I", 4, 1, 2, 1, 3), (1, 2, 1, 3)),
    ],
    ids=["v3", "v1", "before v1", "before v1, 4 sides"],
)
def test_other_versions(tmp_path: Path, head: bytes, shape: tuple[int, ...]) -> None:
    got = read(tmp_path, params(head + CPU_F32 + DATA, ARRAY, names=(b"a", b"b")))
    np.testing.assert_array_equal(got["a"], np.arange(6, dtype=np.float32).reshape(shape))
    np.testing.assert_array_equal(got["b"].ravel(), range(6))


def test_a_scalar_and_another_device(tmp_path: Path) -> None:
    """Numpy semantics have scalars; an array that was on a GPU is read like any other."""
    scalar = struct.pack("<Iii3if", V3, 0, 0, 2, 3, 0, 1.5)
    got = read(tmp_path, params(scalar))["a"]
    assert got.shape == ()
    assert got == 1.5


BAD = {
    "empty": (b"", r"first bytes: expected 12 01 .*, found none"),
    "another format": (b"PK\x03\x04 and more", r"expected 12 01 .*, found 50 4b 03 04"),
    "short": (b"\x12\x01", r"first bytes: .*, found 12 01$"),
    "cut in the head": (params()[:20], r"number of arrays: expected 16 more bytes, found 12"),
    "many arrays": (
        struct.pack("<QQQ", 0x112, 0, 2**63) + ARRAY,
        r"number of arrays: expected at most 3 in a file of this size, found 9223372036854775808",
    ),
    "one array too few": (
        struct.pack("<QQQ", 0x112, 0, 2) + ARRAY,
        r"array 1 of 2: expected 4 more bytes, found 0 \(the file is cut off",
    ),
    "cut in the data": (params(ARRAY)[:-30], r"array 0 of 1, data of shape \(2, 3\): expected 24"),
    "cut in a name": (params(ARRAY)[:-1], r"name 0 of 1: expected 1 more bytes, found 0"),
    "unknown magic": (
        params(struct.pack("<I", 0xF993FACB) + ARRAY),
        r"number of dimensions: expected 1 to 32, found 4187224779 \(magic 0xf993facb\)",
    ),
    "many dimensions": (params(struct.pack("<Iii", V2, 0, 33) + ARRAY), r"1 to 32, found 33"),
    "unfilled": (params(struct.pack("<Iii", V2, 0, 0) + ARRAY), r"1 to 32, found 0"),
    "unknown shape": (params(struct.pack("<Iii", V3, 0, -1) + ARRAY), r"0 to 32, found -1"),
    "negative side": (params(array(0, DATA, 2, -3)), r"sides of at least 1, found .*\(2, -3\)"),
    "no elements": (params(array(0, DATA, 0, 2**62, 2**62)), r"sides of at least 1"),
    "large": (params(array(0, DATA, 2**40)), r"expected 4398046511104 more bytes, found 41"),
    "overflow": (params(array(0, DATA, 2**62, 2**62, 16)), r"expected \d{40} more bytes"),
    "type": (params(array(8, DATA, 6)), r"type: expected float32, .*bool, found 8$"),
    "negative type": (params(array(-1, DATA, 6)), r"type: expected float32, .*, found -1$"),
    "bfloat16": (params(array(12, DATA, 12)), r"found bfloat16 \(12\); cast it to float32"),
    "sparse": (params(struct.pack("<Ii", V2, 1) + ARRAY), r"dense .*found row-sparse storage"),
    "storage": (params(struct.pack("<Ii", V2, -1) + ARRAY), r"found unknown storage \(-1\)"),
    "no names": (params(ARRAY, names=()), r"expected 1, .*found 0; a file written from a list"),
    "a name too many": (params(ARRAY, names=(b"a", b"b")), r"names: expected 1, .*, found 2$"),
    "long name": (
        params(ARRAY)[:-9] + struct.pack("<Q", 2**64 - 1),
        r"name 0 of 1: expected 18446744073709551615 more bytes, found 0",
    ),
    "not UTF-8": (params(ARRAY, names=(b"\xff",)), r"name 0 of 1: expected UTF-8, found b'"),
    "twice": (params(ARRAY, ARRAY, names=(b"a", b"a")), r"name 1 of 2: .* found 'a'"),
    "tail": (params(ARRAY, tail=b"xyz"), r"expected the end of the file, found 3 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'x.params'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [params(ARRAY), params(ARRAY, ARRAY, names=(b"a", b"bc"))])
def test_every_truncation_is_refused(tmp_path: Path, content: bytes) -> None:
    for length in range(len(content)):
        with pytest.raises(UserError):
            read(tmp_path, content[:length])


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.params: can't be read \(No such file"):
        read_ndarrays(tmp_path / "none.params")
    with pytest.raises(UserError, match="can't be read"):
        read_ndarrays(tmp_path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.params"
    write_ndarrays(path, {"a": np.ones(1, np.float32)})
    old = path.read_bytes()
    with pytest.raises(ValueError, match="not in tuple"):  # MXNet has no complex numbers
        write_ndarrays(path, {"a": np.ones(1, np.float32), "b": np.ones(1, np.complex64)})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_large_array_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "x.params"
    write_ndarrays(path, {"a": np.zeros((1000, 1000), np.float32)})
    tracemalloc.start()
    read_ndarrays(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * path.stat().st_size


VALID = params(
    ARRAY,
    struct.pack("<Ii2q", V1, 2, 2, 3) + CPU_F32 + DATA,
    struct.pack("<I1I", 1, 6) + CPU_F32 + DATA,
    names=(b"a", b"bc", b"def"),
)
# what makes a counter, a side or a length hostile
NUMBERS = [b"\x00" * 8, b"\xff" * 8, b"\xff" * 4, b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f"]
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(VALID)),
        st.integers(0, 8),
        st.one_of(st.binary(max_size=8), st.sampled_from(NUMBERS)),
    ),
    max_size=4,
)


def edited(edits: list[tuple[int, int, bytes]], length: int) -> bytes:
    content = VALID
    for position, removed, inserted in edits:
        content = content[:position] + inserted + content[position + removed :]
    return content[:length]


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda tail: VALID[:24] + tail),
        st.builds(edited, EDITS, st.integers(0, 2 * len(VALID))),
    )
)
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """No other exception, and no more memory than a file of 300 bytes can account for."""
    peak = peak_memory(read_ndarrays, "x.params", content)
    assert peak < 20 * len(content) + 300_000  # the constant is the file's own buffer and errors
