"""YOLO labels: rows against numbers worked out by hand, each layout, each kind of broken row."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triscale.data.options import DataConfig
from triscale.data.yolo import read_yolo, yolo_source, yolo_splits
from triscale.errors import DataError, UserError

SKIP = DataConfig(skip_bad=True)


def make(folder: Path, labels: dict[str, str | None], *, beside: bool = False) -> Path:
    """40 x 20 grey pictures `folder`/NAME.png and their label files in .../labels/ or beside."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder if beside else Path(str(folder).replace("/images", "/labels"))
    place.mkdir(parents=True, exist_ok=True)
    for name, text in labels.items():
        Image.new("L", (40, 20)).save(folder / f"{name}.png")
        if text is not None:
            (place / f"{name}.txt").write_text(text)
    return folder


def test_classes_that_are_numbers_are_names_not_places(tmp_path: Path) -> None:
    make(tmp_path / "images/val", {"a": "5 .5 .5 .5 .5\n2 .5 .5 .2 .2\n"})
    index = read_yolo(tmp_path, "val", DataConfig(), classes=("0", "2", "5")).index
    assert index.labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("text", "boxes", "labels"),
    [
        ("", [], []),
        ("\n \n", [], []),
        ("1 0.5 0.5 0.5 0.5\n", [[10, 5, 30, 15]], [1]),
        ("0.0 .25 .5 .5 1\n1 0.5 0.5 1 1", [[0, 0, 20, 20], [0, 0, 40, 20]], [0, 1]),
        ("0 0.5 0.5 1.04 1.05", [[0, 0, 40, 20]], [0]),  # less than a pixel over the border
        ("0 0.1 0.2 0.5 0.9 0.3 0.4", [[4, 4, 20, 18]], [0]),  # a triangle
    ],
)
def test_rows(tmp_path: Path, text: str, boxes: list[Any], labels: list[int]) -> None:
    make(tmp_path / "images/train", {"a": text})
    index = read_yolo(tmp_path, "train", DataConfig(), classes=("x", "y")).index
    np.testing.assert_allclose(index.boxes, np.reshape(boxes, (-1, 4)), rtol=1e-6)
    assert index.labels.tolist() == labels
    np.testing.assert_allclose(
        index.areas, [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x", "'x' is not a row of numbers"),
        ("0", "1 values, expected class cx cy w h"),
        ("0 .5 .5 .5 .5 .9", "6 values"),
        ("0 .5 .5 .5 .5 .5 .5 .5", "8 values"),
        ("2 .5 .5 .5 .5", "class 2, expected a class from 0 to 1"),
        ("-1 .5 .5 .5 .5", "class -1"),
        ("0.5 .5 .5 .5 .5", r"class 0\.5"),
        ("nan .5 .5 .5 .5", "class nan"),
        ("0 nan .5 .5 .5", r"\('x'\): box is not finite: cx=nan cy=0\.5"),
        ("0 .5 nan .5 .5 .1 .1", "polygon is not finite"),
        ("0 .5 .5 0 .5", "zero area: .* w=0 h=0.5"),
        ("0 .5 .5 -.1 -.1", "zero area"),
        ("0 .1 .1 .5 .5 .9 .9", None),
        ("0 .5 .1 .5 .5 .5 .9", "zero area"),
        ("0 .5 .5 1.06 .5", "outside the picture of 40x20"),
        ("0 20 10 20 10", "outside"),
    ],
)
def test_each_broken_row_is_an_error_or_one_skipped_line(
    tmp_path: Path, row: str, words: str | None
) -> None:
    make(tmp_path / "images/train", {"a": f"1 .5 .5 .5 .5\n\n{row}\n"})
    if words is None:
        assert len(read_yolo(tmp_path, "train", DataConfig(), classes=("x", "y")).index.boxes) == 2
        return
    with pytest.raises(DataError, match=r"^1 broken") as caught:
        read_yolo(tmp_path, "train", DataConfig(), classes=("x", "y"))
    read = read_yolo(tmp_path, "train", SKIP, classes=("x", "y"))
    assert read.skipped == caught.value.problems
    assert read.skipped[0].startswith(f"{tmp_path}/labels/train/a.txt: line 3")
    assert re.search(words, read.skipped[0])
    np.testing.assert_array_equal(read.index.boxes, [[10, 5, 30, 15]])


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    folder = make(tmp_path / "images/train", {"a": None, "b": "0 .5 .5 .5 .5", "c": "", "d": ""})
    (folder / "c.png").write_bytes(b"no picture")
    (tmp_path / "labels/train/d.txt").write_bytes(b"\xff\xfe\x00")
    read = read_yolo(tmp_path, "train", SKIP)
    assert [line.split(":")[0] for line in read.skipped] == [
        f"{folder}/c.png",
        f"{tmp_path}/labels/train/d.txt",
    ]
    assert list(read.index.ids) == ["a", "b"]  # a: no label file, so no objects
    assert read.index.offsets.tolist() == [0, 0, 1]
    (tmp_path / "labels/train/b.txt").unlink()
    (tmp_path / "labels/train/d.txt").unlink()
    with pytest.raises(UserError, match=r"none of its 3 pictures has .*labels/train/a\.txt"):
        read_yolo(tmp_path, "train", SKIP)
    with pytest.raises(UserError, match="no split 'test'"):
        read_yolo(tmp_path, "test", SKIP)


@pytest.mark.parametrize(
    ("files", "names", "labels"),
    [
        ({}, ("0", "2", "10"), [1, 0, 2]),
        ({"classes.txt": "\n".join("abcdefghijk")}, tuple("abcdefghijk"), [2, 0, 10]),
        ({"obj.names": "\n".join("abcdefghijk") + "\n\n"}, tuple("abcdefghijk"), [2, 0, 10]),
    ],
)
def test_classes(
    tmp_path: Path, files: dict[str, str], names: tuple[str, ...], labels: list[int]
) -> None:
    rows = [f"{number} .5 .5 .5 .5" for number in (2, 0, 10)]
    make(tmp_path / "images/train", {"a": "\n".join(rows)})
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    index = read_yolo(tmp_path, "train", DataConfig()).index
    assert index.classes == names
    assert index.labels.tolist() == labels


@pytest.mark.parametrize(
    ("layout", "splits"),
    [
        ((), None),
        (("images/train", "images/val"), ("train", "val")),
        (("train/images", "valid/images", "test/images"), ("train", "valid")),
        (("images/train",), ("train", "")),
        (("images/test",), ("", "test")),
    ],
)
def test_usual_splits(
    tmp_path: Path, layout: tuple[str, ...], splits: tuple[str, str] | None
) -> None:
    for folder in layout:
        make(tmp_path / folder, {"a": "0 .5 .5 .5 .5"})
    assert yolo_splits(yolo_source(tmp_path)) == splits
    for split in filter(None, splits or ()):
        assert len(read_yolo(tmp_path, split, DataConfig()).index.boxes) == 1


def test_a_folder_without_splits(tmp_path: Path) -> None:
    """`images` and `labels`, or all in one folder; but not what lies below it."""
    make(tmp_path / "a/images", {"p": "0 .5 .5 .5 .5", "q": ""})
    make(tmp_path / "b", {"p": "0 .5 .5 .5 .5", "q": ""}, beside=True)
    make(tmp_path / "b/runs/1/predictions", {"r": ""}, beside=True)
    for folder, split in (("a", "images"), ("b", "all")):
        assert yolo_splits(yolo_source(tmp_path / folder)) == (split, "")
        assert list(read_yolo(tmp_path / folder, split, DataConfig()).index.ids) == ["p", "q"]
    for label in (tmp_path / "b").glob("*.txt"):
        label.unlink()
    assert yolo_splits(yolo_source(tmp_path / "b")) is None


def test_list_files_and_labels_beside_the_pictures(tmp_path: Path) -> None:
    make(tmp_path / "one", {"a": "0 .5 .5 .5 .5", "b": ""}, beside=True)
    other = make(tmp_path / "two/images", {"c": "0 .5 .5 .5 .5"})
    (tmp_path / "train.txt").write_text(f"./one/b.png\none/a.png\n\n{other}/c.png\n")
    index = read_yolo(tmp_path, "train", DataConfig()).index
    assert list(index.ids) == ["b", "a", "c"]
    assert index.offsets.tolist() == [0, 0, 1, 2]
    index = read_yolo(tmp_path, "one + two/images", DataConfig()).index
    assert list(index.ids) == ["a", "b", "c"]
    (tmp_path / "train.txt").write_text("one/missing.png\none/a.png")
    assert read_yolo(tmp_path, "train", SKIP).skipped == (
        f"{tmp_path}/one/missing.png: can't be read (No such file or directory)",
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("train: images/train\nnames: [cat, dog]", ("cat", "dog")),
        ("train: ../images/train\nnames: {1: dog, 0: cat}\nnc: 2", ("cat", "dog")),  # Roboflow
        ("path: .\ntrain: [images/train]\nnames: [7, 8]\ndownload: rm -r x", ("7", "8")),
        ("path: images\ntrain: train\nnc: 2", ("0", "1")),
    ],
)
def test_data_yaml(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    make(tmp_path / "images/train", {"a": "1 .5 .5 .5 .5"})
    (tmp_path / "data.yaml").write_text(text)
    for root in (tmp_path, tmp_path / "data.yaml"):
        assert yolo_splits(yolo_source(root)) == ("train", "")
        index = read_yolo(root, "train", DataConfig()).index
        assert (index.classes, index.labels.tolist()) == (names, [1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected keys train, val, names"),
        ("names: [cat", "not valid YAML"),
        ("names: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("path: 3", "'path' is 3"),
        ("train: 3", "'train' is 3"),
        ("names: cat", "'names' is 'cat'"),
        ("names: [yes, no]", "quote words like no"),
        ("names: {1: a, 2: b}", "the numbers in 'names' are not 0 to 1"),
        ("names: [a, b]\nnc: 3", "nc is 3, but there are 2 names"),
    ],
)
def test_unusable_data_yaml_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        yolo_source(tmp_path)


def test_a_split_of_data_yaml_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: nowhere\nnames: [cat]")
    with pytest.raises(UserError, match="nowhere: neither a folder nor a list"):
        read_yolo(tmp_path, "train", DataConfig())


ROW = "0 .5 .5 .5 .5"


@pytest.mark.parametrize("row", ["../away/a.png", "{tmp}/away/a.png", "images/train/link.png"])
def test_lists_and_links_that_lead_out(tmp_path: Path, row: str) -> None:
    root = tmp_path / "root"
    make(tmp_path / "away", {"a": ROW}, beside=True)
    make(root / "images/train", {"b": ROW})
    (root / "images/train/link.png").symlink_to(tmp_path / "away/a.png")
    row = row.format(tmp=tmp_path)
    (root / "list.txt").write_text(f"images/train/b.png\n{row}\n")
    with pytest.raises(UserError, match=r"lies outside of the data set .*data\.outside=true") as e:
        read_yolo(root, "list", SKIP)
    assert str(e.value).startswith(f"{root / row}: ")
    assert list(read_yolo(root, "list", replace(SKIP, outside=True)).index.ids) == [
        "b",
        Path(row).stem,
    ]
    (root / "list.txt").write_text(f"../root/images/train/b.png\n{root}/images/train/b.png\n")
    assert list(read_yolo(root, "list", SKIP).index.ids) == ["b", "b"]


@pytest.mark.parametrize(
    "name", ["labels/train/a.txt", "labels", "images", "list.txt", "obj.names"]
)
def test_parts_that_are_links(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    make(root / "images/train", {"a": ROW, "b": ROW})
    (root / "list.txt").write_text("images/train/a.png\nimages/train/b.png")
    (root / "obj.names").write_text("cat")
    path = root / name
    for place, outside in ((root / "moved", False), (tmp_path / "moved", True)):
        path.rename(place)
        path.symlink_to(place)
        for split in ["list"] if name == "list.txt" else ["train", "list"]:
            if outside:
                with pytest.raises(UserError, match="lies outside of the data set"):
                    read_yolo(root, split, SKIP)
            read = read_yolo(root, split, replace(SKIP, outside=outside))
            assert (len(read.index.boxes), read.skipped) == (2, ())
        path.unlink()
        place.rename(path)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path / "images/train", {"a": ROW})
    make(tmp_path / "images/more", {"b": ROW})
    (tmp_path / "images/train/loop").symlink_to(tmp_path / "images/train")
    (tmp_path / "images/train/more").symlink_to(tmp_path / "images/more")
    (tmp_path / "labels/train/more").symlink_to(tmp_path / "labels/more")
    read = read_yolo(tmp_path, "train", DataConfig())
    assert list(read.index.ids) == ["a", "b"]
    assert len(read.index.boxes) == 2
    make(tmp_path / "away", {"c": ROW})
    root = tmp_path / "images"
    (root / "train/more").unlink()
    (root / "train/more").symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match=r"train/more: lies outside of the data set"):
        read_yolo(root, "train", SKIP)


@pytest.mark.parametrize("place", [".", "/data"])
def test_data_yaml_names_the_root(tmp_path: Path, place: str) -> None:
    """`path:` may lead anywhere, but not out of there again."""
    root = tmp_path / place.strip("/")
    make(root / "images/train", {"a": ROW})
    yaml = tmp_path / "yaml/data.yaml"
    yaml.parent.mkdir()
    yaml.write_text(f"path: {root}\ntrain: images/train\nval: {tmp_path}/away\n")
    assert len(read_yolo(yaml, "train", SKIP).index.boxes) == 1
    make(tmp_path / "away", {"b": ROW}, beside=True)
    if place == ".":
        assert len(read_yolo(yaml, "val", SKIP).index.boxes) == 1
        return
    with pytest.raises(UserError, match=r"away: lies outside of the data set"):
        read_yolo(yaml, "val", SKIP)
    assert len(read_yolo(yaml, "val", replace(SKIP, outside=True)).index.boxes) == 1


def test_labels_and_pictures_that_lead_nowhere_are_missing_not_empty(tmp_path: Path) -> None:
    """As a checkout of git-annex or DVC whose files were not fetched."""
    make(tmp_path / "images/train", {"a": ROW, "b": ROW, "c": ROW})
    for name in ("images/train/a.png", "labels/train/b.txt"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/no/where")
    read = read_yolo(tmp_path, "train", SKIP)
    assert list(read.index.ids) == ["c"]
    assert [line.split(": ")[0] for line in read.skipped] == [
        f"{tmp_path}/images/train/a.png",
        f"{tmp_path}/labels/train/b.txt",
    ]


@pytest.mark.parametrize("number", ["1e300", "100000", "inf", "9" * 400])
def test_class_numbers_have_an_end(tmp_path: Path, number: str) -> None:
    make(tmp_path / "images/train", {"a": f"{number} .5 .5 .5 .5\n99999 .5 .5 .5 .5"})
    read = read_yolo(tmp_path, "train", SKIP)
    assert read.index.classes == ("99999",)
    assert "expected a class number below 100,000" in read.skipped[0]
