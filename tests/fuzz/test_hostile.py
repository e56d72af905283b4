"""Single hostile files: bombs, absurd sizes and depths, absurd boxes, things that are no files, and
names that lead elsewhere. Every one is answered, or refused with a line, in little time and memory.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fuzz.readers import indices, make_coco, make_data_file, make_recipe, make_voc, make_yolo
from tests.fuzz.watching import watched
from triscale.config import read_toml
from triscale.data.open import open_dataset
from triscale.data.options import DataConfig
from triscale.data.pictures import picture_size, picture_sizes, read_picture
from triscale.data.yolo import yolo_source
from triscale.errors import UserError

SKIP = DataConfig(skip_bad=True)
BOX = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
SIZE = "<size><width>40</width><height>30</height></size>"


def png(*headers: tuple[int, int], pixels: bytes = zlib.compress(bytes(10))) -> bytes:
    """A PNG of one grey channel; several headers are several sizes."""
    heads = [(b"IHDR", struct.pack(">II5B", w, h, 8, 0, 0, 0, 0)) for w, h in headers]
    chunks = [*heads, (b"IDAT", pixels), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def saved(format: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, format)
    return stream.getvalue()


def large_jpeg() -> bytes:
    data = saved("JPEG")
    frame = data.index(b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", 60_000, 60_000) + data[frame + 4 :]


def large_webp() -> bytes:
    side = struct.pack("<I", 16_382)[:3]
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + 2 * side
    body = b"WEBP" + chunk + saved("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(width: int, height: int, *, repeats: int = 0, block: int = 0) -> bytes:
    """A grey TIFF with `repeats` tags that all name the same `block` bytes."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height)]
    tags += [(279, 4, 1, width * height)]
    end = 8 + 2 + 12 * (len(tags) + repeats) + 4
    tags += [(40_000 + i, 7, block, end) for i in range(repeats)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + bytes(block)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: png((60_000, 60_000)), "60000x60000 pixels"),
        (lambda: png((20_000, 20_000), pixels=zlib.compress(bytes(4 * 10**7))), "20000x20000"),
        (lambda: png((30_000, 30_000), (8, 8)), "IHDR"),  # decoders take the first
        (lambda: png((8, 8), (30_000, 30_000)), "IHDR"),
        (large_jpeg, "60000x60000 pixels"),
        (large_webp, "decompression bomb"),
        (lambda: tiff(60_000, 60_000), "decompression bomb"),
        (lambda: tiff(100, 100, repeats=500, block=2_000_000), "tags are longer than the file"),
        (lambda: b"II+\0" + bytes(20), "BigTIFF"),
        (
            lambda: b"BM" + bytes(12) + struct.pack("<IiiHHI24x", 40, 60_000, 60_000, 1, 24, 0),
            "bomb",
        ),
        (lambda: b"\xff\xd8" + bytes(20_000_000), "between the segments"),
        (lambda: b"\xff\xd8" + b"\xff\xe2\0\2" * 1_000_000, "more than 2,000 segments"),
        (
            lambda: png((8, 8))[:33] + (bytes(4) + b"abcd" + bytes(4)) * 1_000_001,
            "1,000,000 chunks",
        ),
    ],
)
def test_pictures(tmp_path: Path, make: Callable[[], bytes], words: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(make())
    for function in (picture_size, read_picture):
        with watched(), pytest.raises(UserError, match=words) as caught:
            function(path)
        assert str(path) in str(caught.value)


def test_honest_tiffs_stay(tmp_path: Path) -> None:
    """Tags that fill nearly the whole file, as strips of one row do."""
    Image.new("L", (3, 5000)).save(tmp_path / "a.tif", strip_size=1)
    assert read_picture(tmp_path / "a.tif").shape == (5000, 3, 3)


def test_a_picture_of_a_terabyte(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(saved("JPEG")[:-2])
        file.truncate(1 << 40)  # takes no room
    with watched(), pytest.raises(UserError, match=r"a\.jpg: larger than 1,073,741,824 bytes"):
        read_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("xml", "words", "boxes"),
    [
        (
            "<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>",
            "no picture size",
            0,
        ),
        ("<a>" * 3_000_000, "more than 1,500,000 tags", None),
        (f"<annotation>{SIZE}{'<a/>' * 1_400_000}</annotation>", None, 0),
        (f"<annotation>{SIZE}<!--{'-' * 0}{'x' * 9_999_000}--></annotation>", None, 0),
        (
            f"<annotation>{SIZE}<!--{'x' * 11_000_000}--></annotation>",
            "larger than 10,000,000",
            None,
        ),
        (
            f"<annotation>{SIZE}"
            + f"<object><name>dog</name>{BOX.format(1, 9)}</object>" * 90_000
            + "</annotation>",
            None,
            90_000,
        ),
        (
            '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
            + "".join(
                f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcd", "bcde", strict=True)
            )
            + "]><annotation>&e;</annotation>",
            "document type",
            None,
        ),
        ('<?xml version="1.0" encoding="unicode_escape"?><annotation/>', "save it as UTF-8", None),
        (
            f"<annotation>{SIZE}<object><name>{'x' * 9_000_000}</name></object></annotation>",
            "name",
            0,
        ),
        (f"<annotation>{SIZE}<object><name>a\nb</name></object></annotation>", "name", 0),
    ],
)
def test_annotations(tmp_path: Path, xml: str, words: str | None, boxes: int | None) -> None:
    make_voc(tmp_path)
    (tmp_path / "Annotations/a.xml").write_text(xml)
    with watched(megabytes=400, seconds=20):
        data = open_dataset(tmp_path, SKIP, splits=("train",))
    assert len(data.skipped) == (words is not None)
    assert data.train is not None
    assert len(data.train.boxes) == 3 + (boxes or 0)
    assert list(data.train.ids) == (["b"] if boxes is None else ["a", "b"])
    for line in data.skipped:
        assert line.startswith(f"{tmp_path}/Annotations/a.xml: ")
        assert str(words) in line
        assert len(line) < 400
        assert "\n" not in line


ABSURD = ("nan", "inf", "-inf", "1e300", "-1e300", "1.7e308", "-1.7e308", "1e999", "9" * 5000)


@pytest.mark.parametrize("format", ["voc", "yolo"])
@pytest.mark.parametrize("first", [*ABSURD, "5", "-0.0", "5e-324"])
@pytest.mark.parametrize("second", ABSURD)
def test_absurd_boxes(tmp_path: Path, format: str, first: str, second: str) -> None:
    """One line each, and no overflow."""
    if format == "voc":
        make_voc(tmp_path)
        box = f"<annotation>{SIZE}<object><name>dog</name>{BOX.format(first, second)}</object>"
        (tmp_path / "Annotations/a.xml").write_text(f"{box}</annotation>")
    else:
        make_yolo(tmp_path)
        (tmp_path / "labels/train/a.txt").write_text(f"0 {first} .5 {second} .5\n")
    with watched():
        data = open_dataset(tmp_path, SKIP, splits=("train",))
    (index,) = indices(data)
    assert len(data.skipped) == 1
    assert len(index.boxes) == 3


@pytest.mark.parametrize(
    ("key", "value", "skipped"),
    [
        ("id", 2**63, 0),
        ("bbox", [1e308, 2, 1e308, 10], 1),
        ("bbox", [-1e308, 2, 1.7e308, 10], 1),
        ("bbox", [float("nan"), 2, 3, 10], 1),
        ("bbox", [int("9" * 400), 2, 3, 10], 1),
    ],
)
def test_absurd_numbers_in_json(tmp_path: Path, key: str, value: Any, skipped: int) -> None:
    make_coco(tmp_path)
    path = tmp_path / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0][key] = value
    path.write_text(json.dumps(content))
    with watched():
        data = open_dataset(tmp_path, SKIP, splits=("val",))
    (index,) = indices(data)
    assert len(data.skipped) == skipped
    assert len(index.boxes) == 6 - skipped


@pytest.mark.parametrize("value", ["-0.0", "0", "5e-324"])
def test_numbers_next_to_nothing_are_no_harm(tmp_path: Path, value: str) -> None:
    make_voc(tmp_path)
    box = f"<annotation>{SIZE}<object><name>dog</name>{BOX.format(value, 9)}</object>"
    (tmp_path / "Annotations/a.xml").write_text(f"{box}</annotation>")
    (index,) = indices(open_dataset(tmp_path, SKIP, splits=("train",)))
    assert index.boxes[0].tolist() == [0, 1, 9, 9]


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{LAUGHS}names: *i", "aliases"),
        (f"{MERGES}names: [x]", "aliases"),
        ("names: " + "[" * 100_000, "not valid YAML"),
        ("- " * 100_000, "not valid YAML"),
        ("nc: 1000000000000", "nc is 1000000000000, expected a number of classes up to 100,000"),
        ("nc: yes", "nc is True"),
        ("nc: -1", "nc is -1"),
        (f"nc: {'9' * 5000}", "not valid YAML"),
        (f"nc: 0x{'f' * 5000}", "nc is a number with thousands of digits"),
        (f"names: [0x{'f' * 5000}]", "'names' is a number with thousands"),
        (f"path: [0x{'f' * 5000}]", "'path' is a number with thousands"),
        ("a: 2001-99-99", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("train: [1, 2]", "'train' is"),
        (f"names: {['x' * 200] * 900}", "twice"),
        ("x" * 300_000, "larger than 262,144 bytes"),
    ],
)
def test_data_yaml(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with watched(), pytest.raises(UserError, match=words) as caught:
        yolo_source(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/data.yaml: ")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 100_000, "not valid TOML"),
        ("a = " + "{a = " * 100_000, "not valid TOML"),
        ("a." * 100_000 + "b = 1", "more than 1000 dots"),
        (f"a = {'9' * 5000}", "not valid TOML"),
        (f"[train]\nepochs = 0x{'f' * 5000}", "epochs: expected a number of at most 64 bits"),
        (f"[train]\nepochs = [0x{'f' * 5000}]", "epochs: expected a whole number"),
        (f"[train]\nepochs = '{'x' * 100_000}'", "epochs: expected a whole number"),
        ("train.epochs." + "a." * 900 + "a = 1", "epochs: expected a whole number"),
        (f"{'x' * 100_000} = 1", "unknown key 'xxx"),
        ("[optim]\nlr = inf", "lr: expected a positive number"),
        ("[decode]\niou_threshold = nan", "iou_threshold: expected a finite number, got nan"),
        ("x" * 1_100_000, "larger than 1,048,576 bytes"),
    ],
)
def test_recipes(tmp_path: Path, text: str, words: str) -> None:
    from triscale.recipe import load_recipe

    (tmp_path / "r.toml").write_text(text)
    with watched(), pytest.raises(UserError, match=words) as caught:
        load_recipe(tmp_path / "r.toml")
    assert len(str(caught.value)) < 600


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def locked(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path.touch(mode=0)


@pytest.mark.parametrize("kind", [folder, os.mkfifo, loop, device, nowhere, locked])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make_voc, "Annotations/a.xml"),
        (make_voc, "JPEGImages/a.jpg"),
        (make_voc, "ImageSets/Main/trainval.txt"),
        (make_yolo, "labels/train/a.txt"),
        (make_yolo, "images/train/a.jpg"),
        (make_yolo, "val.txt"),
        (make_yolo, "data.yaml"),
        (make_data_file, "data.toml"),
        (make_recipe, "recipe.toml"),
    ],
)
def test_what_is_no_file(
    tmp_path: Path, make: Callable[[Path], None], name: str, kind: Callable[[Any], None]
) -> None:
    """Named in an error or a skipped line; never waited for, never taken for an empty one."""
    if (name, kind) == ("images/train/a.jpg", folder):
        pytest.skip("a folder of pictures may have any name")
    make(tmp_path)
    (tmp_path / name).unlink()
    kind(tmp_path / name)
    with watched(seconds=2):
        try:
            if name.endswith(".toml"):
                read_toml(tmp_path / name)
            data = open_dataset(tmp_path, SKIP)
        except UserError as error:
            told: tuple[str, ...] = (str(error),)
        else:
            told = data.skipped
            assert all(str(tmp_path / name) in line for line in told)
    assert told
    assert str(tmp_path / name) in told[0] or Path(name).stem in told[0]


def test_a_picture_that_is_a_pipe_or_a_device_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    device(tmp_path / "b.jpg")
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c\0.jpg", tmp_path / "\ud800.jpg"]
    with watched(seconds=2):
        sizes = [str(size) for size in picture_sizes(paths)]
        assert ["pipe, socket or device" in text for text in sizes] == [True, True, False, False]
        assert ["not the name of a file" in text for text in sizes] == [False, False, True, True]
        for path in paths:
            with pytest.raises(UserError, match=r"can't be read|not the name of a file"):
                read_picture(path)
