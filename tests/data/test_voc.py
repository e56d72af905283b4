"""VOC: boxes and classes against the reference's own reader, and every kind of broken file."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triscale.data.classes import VOC_CLASSES
from triscale.data.options import DataConfig
from triscale.data.voc import read_voc, voc_classes, voc_splits
from triscale.errors import DataError, UserError

SKIP = DataConfig(skip_bad=True)
BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>10</ymax></bndbox>"
SIZE = "<size><width>40</width><height>30</height></size>"
DOG = f"<object><name>dog</name>{BOX}</object>"


def box_of(xmin: object, ymin: object, xmax: object, ymax: object) -> str:
    values = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    inside = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    return f"<object><name>dog</name><bndbox>{inside}</bndbox></object>"


def make(
    root: Path, files: dict[str, str | bytes], *, size: tuple[int, int] = (30, 40), split: str = "a"
) -> Path:
    """A VOC folder with one grey picture of `size` (height, width) per XML text."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(files) + "\n\n")
    for name, xml in files.items():
        data = xml if isinstance(xml, bytes) else xml.encode()
        (root / "Annotations" / f"{name}.xml").write_bytes(data)
        Image.new("L", size[::-1]).save(root / "JPEGImages" / f"{name}.jpg")
    return root


def annotation(body: str) -> str:
    return f"<annotation>{SIZE}{body}</annotation>"


@pytest.mark.parametrize(
    ("body", "boxes", "difficult"),
    [
        ("", [], []),
        (DOG, [[1, 2, 20, 10]], [0]),
        (box_of(0, 1, 41, 30), [[0, 0, 40, 30]], [0]),  # a pixel too far on both sides
        (box_of("1.5", 1, " 9.25 ", 9), [[0.5, 0, 9.25, 9]], [0]),
        (
            f"<object><difficult>1</difficult><name>\n Dog </name>{BOX}</object>",
            [[1, 2, 20, 10]],
            [1],
        ),
        (
            f"<object><difficult>Unspecified</difficult><name>dog</name>{BOX}</object>",
            [[1, 2, 20, 10]],
            [0],
        ),
        (
            f"<object><part><name>head</name>{BOX.replace('3', '9')}</part>"
            f"<name>dog</name>{BOX}</object>",
            [[1, 2, 20, 10]],
            [0],
        ),
    ],
)
def test_boxes_have_continuous_edges(
    tmp_path: Path, body: str, boxes: list[list[float]], difficult: list[int]
) -> None:
    index = read_voc(
        make(tmp_path, {"x": annotation(body)}), "a", DataConfig(), classes=("dog",)
    ).index
    np.testing.assert_array_equal(index.boxes, np.reshape(boxes, (-1, 4)))
    assert index.difficult.tolist() == difficult
    assert index.offsets.tolist() == [0, len(boxes)]
    assert index.sizes.tolist() == [[30, 40]]
    assert index.labels.tolist() == [0] * len(boxes)


@pytest.mark.golden
def test_labels_equal_the_reference_and_what_it_dropped_is_reported(
    tmp_path: Path, golden: Path
) -> None:
    cases = json.loads((golden / "voc_xml.json").read_text())
    config = DataConfig(skip_bad=True, inclusive_boxes=True)
    dropped = {
        "degenerate_dropped": "object 1 ('car'): box has zero area: xmin=10 ymin=10 xmax=10",
        "unknown_class_skipped": "object 1 ('zebra'): not one of the 20 classes",
        "xmax_over_dropped": "object 1 ('car'): box reaches outside the picture of 500x375",
    }
    ours = {
        "no_difficult_tag": [[4, 4, 8, 8, 6, 0]],  # the reference stops with an AttributeError
        # One pixel over the border: the reference drops the first box and doesn't cut the second.
        "xmin0_dropped": [[0, 4, 49, 59, 6, 0], [0, 0, 499, 374, 5, 0]],
    }
    for name, (xml, theirs) in cases.items():
        read = read_voc(
            make(tmp_path / name, {"x": xml}, size=(375, 500)), "a", config, classes=VOC_CLASSES
        )
        index = read.index
        rows = np.column_stack([index.boxes, index.labels, index.difficult])
        expected = ours.get(name, theirs)
        np.testing.assert_allclose(rows, np.reshape(expected, (-1, 6)), rtol=1e-6, err_msg=name)
        assert len(read.skipped) == (name in dropped), name
        if name in dropped:
            assert dropped[name] in read.skipped[0]


@pytest.mark.parametrize(
    ("xml", "words", "kept"),
    [
        (b"", "not an XML file", False),
        (annotation(DOG)[:-5], "not an XML file", False),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not an XML file", False),
        (f'<!DOCTYPE a [<!ENTITY e "dog">]>{annotation(DOG)}', "document type", False),
        (f'<!DOCTYPE a SYSTEM "http://x/y.dtd">{annotation(DOG)}', "document type", False),
        (f"<!DOCTYPE a []>{annotation(DOG)}".encode("utf-16"), "document type", False),
        ("<annotations><image/></annotations>", "expected <annotation>", False),
        (f"<annotation>{DOG}</annotation>", "no picture size", True),
        (
            f"<annotation><size><width>0</width><height>0</height></size>{DOG}</annotation>",
            "no picture size",
            True,
        ),
        (
            f"<annotation><size><width>30</width><height>40</height></size>{DOG}</annotation>",
            "made for a picture of 30x40, but the picture is 40x30",
            False,
        ),
        (annotation(f"<object>{BOX}</object>{DOG}"), r"object 1 \(''\): no name", True),
        (
            annotation(f"{DOG}<object><name>dog</name></object>"),
            r"object 2 \('dog'\): no bndbox",
            True,
        ),
        (annotation(DOG + box_of(1, 1, "ten", 9)), r"object 2 \('dog'\): xmax is 'ten'", True),
        (annotation(DOG + box_of(1, 1, "nan", 9)), "not finite: .* xmax=nan", True),
        (annotation(DOG + box_of(1, 1, "inf", 9)), "not finite", True),
        (annotation(DOG + box_of(9, 1, 9, 9)), "zero area: xmin=9 ymin=1 xmax=9 ymax=9", True),
        (annotation(DOG + box_of(9, 1, 5, 9)), "zero area", True),
        (annotation(DOG + box_of(1, 1, 42, 9)), "outside the picture of 40x30: .* xmax=42", True),
        (annotation(DOG + box_of(-1, 1, 5, 9)), "outside", True),
        (annotation(DOG + DOG.replace("dog", "cat")), r"'cat'\): not one of the 1 classes", True),
    ],
)
def test_each_broken_label_is_an_error_or_one_skipped_line(
    tmp_path: Path, xml: str | bytes, words: str, kept: bool
) -> None:
    root = make(tmp_path, {"good": annotation(DOG), "bad": xml})
    with pytest.raises(DataError, match=r"^1 broken labels or pictures in a; ") as caught:
        read_voc(root, "a", DataConfig(), classes=("dog",))
    read = read_voc(root, "a", SKIP, classes=("dog",))
    assert read.skipped == caught.value.problems
    assert read.skipped[0].startswith(f"{root}/Annotations/bad.xml: ")
    assert re.search(words, read.skipped[0])
    assert list(read.index.ids) == ["good", "bad"][: 1 + kept]
    np.testing.assert_array_equal(read.index.boxes, [[1, 2, 20, 10]] * (1 + kept))


def test_names_may_end_like_the_second_column_of_a_list(tmp_path: Path) -> None:
    names = ["img 5", "img -1", "img 1", "plain"]
    root = make(tmp_path, dict.fromkeys(names, annotation(DOG)))
    path = root / "ImageSets/Main/a.txt"
    path.write_text("img 5  1\nimg -1\nimg 1\nplain -1\n")
    assert list(read_voc(root, "a", DataConfig()).index.ids) == ["img 5", "img -1", "img 1"]


def test_a_line_for_each_unknown_class_not_for_each_of_its_objects(tmp_path: Path) -> None:
    cat, ant = DOG.replace("dog", "cat"), DOG.replace("dog", "ant")
    root = make(tmp_path, {"a": annotation(cat + DOG + cat), "b": annotation(ant + cat)})
    with pytest.raises(DataError, match=r"^4 broken labels or pictures in a; ") as caught:
        read_voc(root, "a", DataConfig(), classes=("dog",))
    first, second = caught.value.problems
    assert first.startswith(f"{root}/Annotations/a.xml: object 1 ('cat'): not one of the 1 classes")
    assert first.endswith(" (and 2 more of this class)")
    assert second.startswith(f"{root}/Annotations/b.xml: object 1 ('ant'): not one of")
    assert "more" not in second


def test_missing_and_broken_files_are_reported_together(tmp_path: Path) -> None:
    root = make(tmp_path, {name: annotation(DOG) for name in "abcd"})
    (root / "JPEGImages/a.jpg").unlink()
    (root / "JPEGImages/b.jpg").write_bytes(b"")
    (root / "Annotations/c.xml").unlink()
    with pytest.raises(DataError) as caught:
        read_voc(root, "a", DataConfig())
    assert [line.split(": ", 1)[0] for line in caught.value.problems] == [
        f"{root}/JPEGImages/a.jpg",
        f"{root}/JPEGImages/b.jpg",
        f"{root}/Annotations/c.xml",
    ]
    assert list(read_voc(root, "a", SKIP).index.ids) == ["d"]
    (root / "Annotations/d.xml").unlink()
    with pytest.raises(UserError, match="a: no usable picture"):
        read_voc(root, "a", SKIP)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("\n", None),
        ("x\n\ny \n", ["x", "y"]),
        ("x  1\ny -1\nz  0", ["x", "z"]),
        ("x/../y", ""),
        ("..", ""),
        ("/etc/passwd", ""),
        ("..\\x", ""),
    ],
)
def test_list_files(tmp_path: Path, text: str, ids: list[str] | str | None) -> None:
    root = make(tmp_path, {name: annotation(DOG) for name in "xyz"})
    (root / "ImageSets/Main/a.txt").write_text(text)
    if not ids:
        with pytest.raises(UserError, match="no usable picture" if ids is None else "plain file"):
            read_voc(root, "a", DataConfig())
    else:
        assert list(read_voc(root, "a", DataConfig()).index.ids) == ids


def test_pictures_of_other_formats_are_found(tmp_path: Path) -> None:
    root = make(tmp_path, {name: annotation(DOG) for name in ("x.1", "y")})
    (root / "JPEGImages/x.1.jpg").rename(root / "JPEGImages/x.1.JPEG")
    Image.new("L", (40, 30)).save(root / "JPEGImages/y.png")  # besides y.jpg, which goes first
    paths = read_voc(root, "a", DataConfig()).index.paths
    assert [Path(path).name for path in paths] == ["x.1.JPEG", "y.jpg"]


@pytest.mark.parametrize(
    ("names", "classes"),
    [((), ()), (("dog",), VOC_CLASSES), (("Dog", "person"), VOC_CLASSES), (("b", "a"), ("a", "b"))],
)
def test_classes_of_the_data(names: tuple[str, ...], classes: tuple[str, ...]) -> None:
    assert voc_classes(names) == classes


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({}, None),
        ({".": "trainval test train val"}, ("trainval", "test")),
        ({".": "trainval train val"}, ("train", "val")),
        ({".": "pictures"}, ("pictures", "")),
        ({".": "trainval"}, ("trainval", "")),
        ({".": "train test"}, ("train", "test")),
        ({".": "default test"}, ("default", "test")),
        ({".": "one two"}, ("", "")),
        ({".": "test"}, ("", "test")),
        ({".": "trainval val"}, ("", "val")),  # which trainval would hold
        ({"VOC2007": "trainval", "VOC2012": "trainval"}, ("2007_trainval+2012_trainval", "")),
        (
            {"VOC2007": "trainval test", "VOC2012": "trainval val"},
            ("2007_trainval+2012_trainval", "2007_test"),
        ),
        ({"VOC2012": "trainval train val"}, ("2012_train", "2012_val")),
        (
            {"VOC2008": "trainval test", "VOC2010": "trainval test"},
            ("2008_trainval+2010_trainval", "2010_test"),
        ),
    ],
)
def test_usual_splits(
    tmp_path: Path, lists: dict[str, str], expected: tuple[str, str] | None
) -> None:
    for folder, splits in lists.items():
        for split in splits.split():
            make(tmp_path / folder, {}, split=split)
    assert voc_splits(tmp_path) == expected


def test_a_folder_without_lists(tmp_path: Path) -> None:
    """All that has an annotation; a picture without one is no part of the data."""
    root = tmp_path / "VOC2007"
    make(root, {"p": annotation(DOG), "q": annotation(DOG)}, split="x")
    (root / "JPEGImages/r.jpg").write_bytes((root / "JPEGImages/p.jpg").read_bytes())
    shutil.rmtree(root / "ImageSets")
    for place, split in ((root, "all"), (tmp_path, "2007_all")):
        assert voc_splits(place) == (split, "")
        assert list(read_voc(place, split, DataConfig()).index.ids) == ["p", "q"]
    with pytest.raises(UserError, match=r"x\.txt: can't read .*; lists there: all"):
        read_voc(root, "x", DataConfig())
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/all.txt").write_text("q")
    assert list(read_voc(root, "all", DataConfig()).index.ids) == ["q"]
    (root / "ImageSets/Main/all.txt").rename(root / "ImageSets/Main/train.txt")
    with pytest.raises(UserError, match=r"all\.txt: can't read .*; lists there: train"):
        read_voc(root, "all", DataConfig())


def test_years_are_joined(tmp_path: Path) -> None:
    make(tmp_path / "VOC2007", {"p": annotation(DOG)}, split="trainval")
    make(tmp_path / "VOC2012", {"q": annotation(DOG)}, split="trainval")
    index = read_voc(tmp_path, "2007_trainval+2012_trainval", DataConfig()).index
    assert list(index.ids) == ["p", "q"]
    assert index.paths[1] == str(tmp_path / "VOC2012/JPEGImages/q.jpg")
    with pytest.raises(UserError, match=r"expected a split like 2007_trainval, got 'trainval'"):
        read_voc(tmp_path, "trainval", DataConfig())
    with pytest.raises(UserError, match=r"test\.txt: .*; lists there: trainval"):
        read_voc(tmp_path, "2007_test", DataConfig())


def test_real_data_names_the_two_broken_boxes(shared: Path) -> None:
    root = shared / "data" / "bccd"
    with pytest.raises(DataError, match="2 broken") as caught:
        read_voc(root, "trainval+test", DataConfig())
    assert [line.removeprefix(f"{root}/Annotations/") for line in caught.value.problems] == [
        "BloodImage_00338.xml: object 13 ('RBC'): box has zero area: "
        "xmin=504 ymin=337 xmax=504 ymax=337",
        "BloodImage_00343.xml: object 4 ('RBC'): box has zero area: "
        "xmin=181 ymin=329 xmax=181 ymax=329",
    ]
    index = read_voc(root, "trainval+test", SKIP).index
    assert (len(index), index.classes) == (364, ("Platelets", "RBC", "WBC"))
    # The data set's own files, counted with grep: 4888 <object>.
    assert len(index.boxes) == 4888 - 2


@pytest.mark.parametrize("name", ["JPEGImages", "Annotations", "ImageSets", "VOC"])
def test_folders_that_are_links(tmp_path: Path, name: str) -> None:
    """A link inside is followed; one that leads out is refused with one line, or allowed."""
    root = make(tmp_path / "root" / "VOC2007", {"x": annotation(DOG)})
    moved = root if name == "VOC" else root / name
    for place, outside in ((tmp_path / "root" / "moved", False), (tmp_path / "moved", True)):
        moved.rename(place)
        moved.symlink_to(place)
        if outside:
            with pytest.raises(
                UserError, match=r"lies outside of the data set .*data\.outside"
            ) as e:
                read_voc(tmp_path / "root", "2007_a", SKIP)
            assert str(e.value).startswith(str(moved))
        read = read_voc(tmp_path / "root", "2007_a", replace(SKIP, outside=outside))
        assert list(read.index.ids) == ["x"]
        moved.unlink()
        place.rename(moved)


@pytest.mark.parametrize("name", ["JPEGImages/x.jpg", "Annotations/x.xml", "ImageSets/Main/a.txt"])
def test_files_that_are_links(tmp_path: Path, name: str) -> None:
    root = make(tmp_path / "root", {"x": annotation(DOG), "y": annotation(DOG)})
    path = root / name
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match="lies outside of the data set") as caught:
        read_voc(root, "a", SKIP)
    assert str(caught.value).startswith(f"{path}: ")
    assert list(read_voc(root, "a", replace(SKIP, outside=True)).index.ids) == ["x", "y"]


@pytest.mark.parametrize("split", ["../../../a", "{tmp}/a"])
def test_a_split_that_leads_out(tmp_path: Path, split: str) -> None:
    root = make(tmp_path / "root", {"x": annotation(DOG)})
    (tmp_path / "a.txt").write_text("x\n")
    split = split.format(tmp=tmp_path)
    with pytest.raises(UserError, match=r"a\.txt: lies outside of the data set"):
        read_voc(root, split, SKIP)
    assert len(read_voc(root, split, replace(SKIP, outside=True)).index) == 1


def test_a_list_with_a_byte_order_mark(tmp_path: Path) -> None:
    root = make(tmp_path, {"x": annotation(DOG)})
    (root / "ImageSets/Main/a.txt").write_bytes(b"\xef\xbb\xbfx\r\n")
    assert list(read_voc(root, "a", DataConfig()).index.ids) == ["x"]
