"""Damaged .weights files, files that don't fit together, and what can't be written."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.watching import peak_memory
from tests.weights.darknet_files import (
    HEADER,
    TINY,
    empty_file,
    first_convolution,
    first_layers,
    made,
    tiny_file,
    write_floats,
)
from triscale.errors import UserError
from triscale.model.yolo import ModelConfig
from triscale.weights.contents import Weights
from triscale.weights.darknet import read_darknet, write_darknet
from triscale.weights.darknet_cfg import cfg_text
from triscale.weights.darknet_layers import Network, layers


def header(*version: int, seen: int = 0) -> bytes:
    return struct.pack("<3iq", *version, seen)


ONE = first_convolution().astype("<f4").tobytes()
BAD = {
    "empty": (b"", "expected a header of at least 16 bytes, found 0 bytes"),
    "11 bytes": (HEADER[:11], "at least 16 bytes, found 11"),
    "cut header": (HEADER[:19], "expected a header of 20 bytes, found 19"),
    "cut older header": (struct.pack("<3i", 0, 1, 0) + b"ab", "a header of 16 bytes, found 14"),
    "header alone": (HEADER, "expected 496 numbers for the first 1 convolutions of yolov3-tiny, "),
    "web page": (b"<!DOCTYPE html><html>", "begin with a version such as 0 2 0, found 1329865020"),
    "negative": (header(0, -2, 0) + ONE, "version such as 0 2 0, found 0 -2 0"),
    "revision": (header(0, 2, -5) + ONE, "version such as 0 2 0, found 0 2 -5"),
    "large": (header(1000, 2, 0) + ONE, "version such as 0 2 0, found 1000 2 0"),
    "large minor": (header(0, 1001, 0) + ONE, "version such as 0 2 0, found 0 1001 0"),
    "seen": (header(0, 2, 0, seen=-1) + ONE, "pictures seen of at least 0, found -1"),
    "older seen": (struct.pack("<4i", 0, 1, 0, -7) + ONE, "seen of at least 0, found -7"),
    "3 bytes": (
        HEADER + ONE + b"abc",
        r"numbers of 4 bytes after a header of 20, found 1987 bytes",
    ),
    "a float less": (HEADER + ONE[:-4], r"496 numbers for .*, found 495; the file is cut off"),
    "a float more": (HEADER + ONE + ONE[:4], "496 numbers for .*, found 497; the file is cut off"),
    "older version": (header(0, 1, 0) + ONE, "expected 496 numbers .*, found 497"),
    "newer version": (struct.pack("<4i", 0, 2, 0, 0) + ONE, "expected 496 numbers .*, found 495"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    path = tmp_path / "x.weights"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_darknet(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("num_floats", "nearest"),
    [
        (8_858_734 - 1, "expected 8858734 numbers for yolov3-tiny with 80 classes, found 8858733"),
        (62_001_757 + 3, "expected 62001757 numbers for yolov3 with 80 classes, found 62001760"),
        (63_052_381 + 9, "expected 63052381 numbers for yolov3-spp with 80 classes"),
        (41_645_641, "expected 41645640 numbers for darknet53, found 41645641"),
        (40_620_639, "expected 40620640 numbers for the first 52 convolutions of yolov3,"),
        (10**10, "with 10000 classes, found 10000000000; .* which its .cfg would tell"),
    ],
)
def test_the_nearest_network_is_named(num_floats: int, nearest: str, tmp_path: Path) -> None:
    path = empty_file(tmp_path / "x.weights", num_floats)
    with pytest.raises(UserError, match=nearest):
        read_darknet(path)


def test_numbers_that_do_not_fit_the_cfg(tmp_path: Path) -> None:
    path = tiny_file(tmp_path, num_classes=80)
    text = cfg_text(Network(TINY, 20, layers(TINY, 20)), path=path)
    (tmp_path / "x.cfg").write_text(text)
    message = "expected 8720134 numbers for the network of the .cfg with 20 classes, found 8858734"
    with pytest.raises(UserError, match=message):
        read_darknet(path)
    (tmp_path / "x.cfg").write_text(text.replace("filters=16", "filters=8"))
    with pytest.raises(UserError, match=r"x\.cfg:\d+: layer 0: .*found filters=8"):
        read_darknet(path)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, np.nan, r"stages\.0\.0\.norm\.bias has values that are not finite"),
        (20, np.inf, r"norm\.weight has values that are not finite"),
        (48, np.inf, r"norm\.(weight|running_var) has values that are not finite"),
        (49, np.nan, r"norm\.(weight|running_var) has values that are not finite"),
        (50, -1e-9, r"norm\.running_var: expected at least 0, found -1e-09"),
        (495, -np.inf, r"conv\.weight has values that are not finite"),
    ],
)
def test_values_that_are_none(index: int, value: float, message: str, tmp_path: Path) -> None:
    floats = first_convolution()
    floats[index] = value
    with pytest.raises(UserError, match=message):
        read_darknet(write_floats(tmp_path / "x.weights", floats))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.weights: can't be read \(No such file"):
        read_darknet(tmp_path / "none.weights")
    with pytest.raises(UserError, match=r"none\.cfg: can't be read"):
        read_darknet(tmp_path / "none.weights", cfg=tmp_path / "none.cfg")
    with pytest.raises(UserError, match="can't be read"):
        read_darknet(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a class name in UTF-8 on each line, found 1 lines, 1 of them empty"),
        (b"a\nb\n", r"expected 3 lines, the classes of x\.weights, found 2"),
        (b"a\n\nb\n", "expected a class name in UTF-8 on each line, found 3 lines"),
        (b"a\nb\n\xff\n", "expected a class name in UTF-8"),
        (b"a" * (1 << 19), "expected a text of at most"),
    ],
)
def test_wrong_names(content: bytes, message: str, tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    (tmp_path / "x.names").write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.names: {message}"):
        read_darknet(path)


def test_as_many_names_as_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 3 classes, 2 names were given"):
        read_darknet(tiny_file(tmp_path), classes=["a", "b"])
    path = write_floats(tmp_path / "x.conv.1", first_convolution())
    with pytest.raises(UserError, match="has 0 classes, 2 names were given"):
        read_darknet(path, classes=["a", "b"])


def without(weights: Weights, *names: str) -> Weights:
    return weights._replace(tensors={k: v for k, v in weights.tensors.items() if k not in names})


def test_what_darknet_has_no_place_for(tmp_path: Path) -> None:
    weights = made(TINY, ("a",))
    info, tensors = weights.info, weights.tensors
    mean = "backbone.stages.0.0.norm.running_mean"
    variance = "head.blocks.1.tip.norm.running_var"
    bad_variance = {**tensors, variance: -tensors[variance]}
    cases = {
        "found 0 of 13 .* and 58 other tensors": without(weights, mean),
        "found 0 of 13 .* and 0 other": Weights({}, info),
        "found 12 of 13 .* and 1 other": without(weights, "head.outputs.1.bias"),
        "found 10 of 13 .* and 0 other": Weights(first_layers(weights, 10).tensors, info),
        "found 13 of 13 .* and 1 other": Weights({**tensors, "more": tensors[mean]}, info),
        "found 9 of 13 .* and 14 other": weights._replace(info=info._replace(classes=("a", "b"))),
        "not finite": Weights({**tensors, mean: tensors[mean] / 0}, info),
        "head.blocks.1.tip.norm.running_var: expected at least 0": Weights(bad_variance, info),
        "32 divides, found 100": weights._replace(info=info._replace(size=100)),
        "hold the class name ' a'": weights._replace(info=info._replace(classes=(" a",))),
        r"hold the class name 'a\\nb'": weights._replace(info=info._replace(classes=("a\nb",))),
        "hold the class name ''": weights._replace(info=info._replace(classes=("",))),
        r"\.weights: Darknet has no YOLOv3 on MobileNet": made(ModelConfig("mobilenet0.1"), ("a",)),
        "at least one class": made(TINY, ()),
    }
    for message, case in cases.items():
        with pytest.raises(UserError, match=message):
            write_darknet(tmp_path / "x.weights", case)
    with pytest.raises(UserError, match=r"x\.params: expected a name that ends in \.weights"):
        write_darknet(tmp_path / "x.params", weights)
    assert list(tmp_path.iterdir()) == []


NUMBERS = [b"\x00" * 8, b"\xff" * 8, b"\xff" * 4, b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f"]
EDITS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 24), st.integers(0, len(HEADER + ONE))),
        st.integers(0, 8),
        st.one_of(st.binary(max_size=8), st.sampled_from(NUMBERS)),
    ),
    max_size=3,
)


def edited(edits: list[tuple[int, int, bytes]], length: int) -> bytes:
    content = HEADER + ONE
    for position, removed, inserted in edits:
        content = content[:position] + inserted + content[position + removed :]
    return content[:length]


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=100),
        st.builds(edited, EDITS, st.one_of(st.just(9999), st.integers(0, len(HEADER + ONE)))),
    )
)
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """No other exception, and no more memory than a small file can account for."""
    peak = peak_memory(read_darknet, "x.weights", content)
    assert peak < 10_000_000
