"""Opening a path: the format is recognised, the splits share their classes, errors are complete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triscale.data.classes import VOC_CLASSES
from triscale.data.open import describe, open_dataset
from triscale.data.options import DataConfig
from triscale.errors import DataError, UserError

BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>10</ymax></bndbox>"


def make_voc(root: Path, train: str, val: str) -> Path:
    """A VOC folder with one picture per split that shows one object of the given class."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, name in (("train", train), ("val", val)):
        (root / f"ImageSets/Main/{split}.txt").write_text(split)
        Image.new("L", (40, 30)).save(root / f"JPEGImages/{split}.jpg")
        (root / f"Annotations/{split}.xml").write_text(
            "<annotation><size><width>40</width><height>30</height></size>"
            f"<object><name>{name}</name>{BOX}</object></annotation>"
        )
    return root


def make_coco(root: Path, splits: tuple[str, ...] = ("train2017", "val2017")) -> Path:
    """A COCO root; in each split a crowd of cats and a second picture without objects."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 4, "name": "dog"}, {"id": 2, "name": "cat"}]
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)]
    objects = [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 2, "image_id": 1, "category_id": 4, "bbox": [0, 0, 9, 9]},
    ]
    content = {"images": images, "annotations": objects, "categories": categories}
    for split in splits:
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        (root / f"annotations/captions_{split}.json").write_text("{}")
        (root / split).mkdir()
        for image in images:
            Image.new("L", (40, 30)).save(root / split / str(image["file_name"]))
    return root


def make_yolo(root: Path, names: str = "") -> Path:
    """A YOLO folder: class 3 in train, class 1 in val."""
    for split, number in (("train", 3), ("val", 1)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        Image.new("L", (40, 30)).save(root / f"images/{split}/a.png")
        (root / f"labels/{split}/a.txt").write_text(f"{number} .5 .5 .5 .5")
    if names:
        (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    return root


def labels(path: Path, config: DataConfig = DataConfig()) -> tuple[tuple[str, ...], list[int]]:  # noqa: B008
    """The classes, and the labels of train and val one after the other."""
    data = open_dataset(path, config)
    assert data.train is not None
    assert data.val is not None
    assert data.train.classes == data.val.classes == data.classes
    return data.classes, [*data.train.labels.tolist(), *data.val.labels.tolist()]


@pytest.mark.parametrize(
    ("train", "val", "classes", "numbers"),
    [
        ("zebra", "ant", ("ant", "zebra"), [1, 0]),
        ("zebra", "dog", ("dog", "zebra"), [1, 0]),
        ("person", "Dog", VOC_CLASSES, [14, 11]),
    ],
)
def test_voc_classes_are_those_of_both_splits(
    tmp_path: Path, train: str, val: str, classes: tuple[str, ...], numbers: list[int]
) -> None:
    assert labels(make_voc(tmp_path / "a", train, val)) == (classes, numbers)


def test_coco_is_read_differently_for_training_and_validation(tmp_path: Path) -> None:
    data = open_dataset(make_coco(tmp_path / "a"))
    assert (data.format, data.classes) == ("coco", ("cat", "dog"))
    assert data.train is not None
    assert data.val is not None
    assert list(data.train.ids) == ["1"]
    assert list(data.val.ids) == ["1", "2"]
    assert data.train.labels.tolist() == [1]
    assert data.val.labels.tolist() == [0, 1]
    assert data.val.crowd.tolist() == [True, False]
    assert Path(data.val.paths[0]) == tmp_path / "a/val2017/1.png"


@pytest.mark.parametrize(
    "name", ["val2017", "instances_val2017", "annotations/instances_val2017.json"]
)
def test_coco_splits_by_any_of_their_names(tmp_path: Path, name: str) -> None:
    root = make_coco(tmp_path / "a", ("train2014", "train2017", "val2017"))
    assert open_dataset(root, splits=("train",)).train.name == "instances_train2017"  # type: ignore[union-attr]
    data = open_dataset(root, DataConfig(train=name), splits=("train",))
    assert data.val is None
    assert data.train is not None
    assert Path(data.train.paths[0]).parent.name == "val2017"
    with pytest.raises(UserError, match="no annotation file for split 'x'; found instances_train"):
        open_dataset(root, DataConfig(val="x"))


@pytest.mark.parametrize(
    ("names", "classes", "numbers"),
    [("", ("1", "3"), [1, 0]), ("[a, b, c, d]", ("a", "b", "c", "d"), [3, 1])],
)
def test_yolo_splits_share_their_classes(
    tmp_path: Path, names: str, classes: tuple[str, ...], numbers: list[int]
) -> None:
    root = make_yolo(tmp_path / "a", names)
    assert labels(root) == (classes, numbers)
    if names:
        assert labels(root / "data.yaml") == (classes, numbers)
    else:  # without names of their own the numbers count in the fixed list
        assert labels(root, DataConfig(classes=("p", "q", "r", "s"))) == (
            ("p", "q", "r", "s"),
            [3, 1],
        )


def test_the_classes_of_the_caller_go_first(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "a", "zebra", "ant")
    file = tmp_path / "a.toml"
    file.write_text('root = "a"\nformat = "voc"\nclasses = ["ant", "bee", "zebra"]\n')
    assert labels(file) == (("ant", "bee", "zebra"), [2, 0])
    config = DataConfig(classes=("zebra", "ant"))
    assert labels(file, config) == (("zebra", "ant"), [0, 1])
    assert open_dataset(file, config, classes=("ant", "zebra")).classes == ("ant", "zebra")
    with pytest.raises(DataError, match=r"'ant'\): not one of the 1 classes"):
        open_dataset(root, classes=("zebra",))
    data = open_dataset(root, classes=("zebra",), splits=("train",))
    assert data.val is None


def test_the_broken_labels_of_all_splits_come_in_one_error(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "a", "zebra", "ant")
    for split in ("train", "val"):
        path = root / f"Annotations/{split}.xml"
        path.write_text(path.read_text().replace("<xmax>20", "<xmax>99"))
    with pytest.raises(DataError, match="2 broken labels or pictures in train and val; ") as caught:
        open_dataset(root)
    data = open_dataset(root, DataConfig(skip_bad=True))
    assert data.skipped == caught.value.problems
    assert len(data.skipped) == 2


def test_inclusive_boxes(tmp_path: Path) -> None:
    data = open_dataset(make_coco(tmp_path / "a"), DataConfig(inclusive_boxes=True))
    assert data.val is not None
    assert data.val.inclusive
    assert data.val.boxes.tolist() == [[0, 0, 8, 8], [0, 0, 8, 8]]
    assert data.val.areas.tolist() == [81, 81]


def test_a_toml_file_says_where_things_are(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "a")
    (root / "annotations/instances_val2017.json").rename(root / "mine.json")
    (root / "val2017").rename(root / "pictures")
    file = tmp_path / "data.toml"
    lines = ["format = 'coco'", "root = 'a'", "val = 'mine.json'", "val_images = 'pictures'"]
    file.write_text("\n".join(lines))
    data = open_dataset(file)
    assert data.val is not None
    assert data.val.name == "mine"
    assert Path(data.val.paths[0]) == root / "pictures/1.png"
    assert data.root == root


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no data set found"),
        ("format = ", "not valid TOML"),
        ("rot = 'a'", "unknown key 'rot'; did you mean 'root'"),
        ("format = 'pascal'", "expected one of '', 'voc', 'coco', 'yolo', got 'pascal'"),
        ("root = 'nowhere'", "nowhere: no such folder"),
        ("root = 'nowhere'\nformat = 'voc'", "no train split found"),
    ],
)
def test_unusable_toml_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "data.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        open_dataset(tmp_path / "data.toml")


def test_a_path_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"looked for VOC .* COCO .* YOLO .*; found nothing"):
        open_dataset(tmp_path)
    for i in range(10):
        (tmp_path / f"{i}.png").touch()
    with pytest.raises(UserError, match=r"found 0\.png, 1\.png, .* and 2 more"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match=r"0\.png: no such folder, \.toml or \.yaml file"):
        open_dataset(tmp_path / "0.png")


def test_a_split_that_cannot_be_found(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "a", "zebra", "ant")
    (root / "ImageSets/Main/val.txt").unlink()
    words = r"a: no validation split, and of 1 pictures none can be spared; name one with --set da"
    with pytest.raises(UserError, match=words):
        open_dataset(root, splits=("val",))
    data = open_dataset(root)
    assert data.train is not None
    assert data.val is None
    assert describe(data)[2] == "no validation split, and of 1 pictures none can be spared"
    assert open_dataset(root, splits=("train",)).val is None
    data = open_dataset(root, DataConfig(val="train"), splits=("val",))
    assert data.train is None
    assert data.val is not None
    assert list(data.val.ids) == ["train"]
    (root / "ImageSets/Main/train.txt").rename(root / "ImageSets/Main/test.txt")
    with pytest.raises(UserError, match=r"no train split found; name one with --set data\.train="):
        open_dataset(root)


def make_unsplit(root: Path, format: str) -> Path:
    """20 pictures in one split; each fourth without objects, the others with a broken one too."""
    root.mkdir()
    images: list[dict[str, object]] = []
    objects: list[dict[str, object]] = []
    for i in range(20):
        name, empty = f"{i:02}", i % 4 == 0
        images.append({"id": i, "file_name": f"{name}.png", "width": 40, "height": 30})
        if format == "yolo":
            rows = "" if empty else "0 .5 .5 .5 .5\n0 9 .5 .5 .5"
            (root / f"{name}.txt").write_text(rows)
        for left in () if empty else (0, 90):
            box = {"id": len(objects), "image_id": i, "category_id": 1, "bbox": [left, 0, 9, 9]}
            objects.append(box)
        Image.new("L", (40, 30)).save(root / f"{name}.png")
    if format == "coco":
        (root / "annotations").mkdir()
        content = {"images": images, "annotations": objects}
        content["categories"] = [{"id": 1, "name": "cat"}]
        (root / "annotations/default.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("format", ["yolo", "coco"])
def test_without_a_validation_split_some_pictures_are_held_out(tmp_path: Path, format: str) -> None:
    root = make_unsplit(tmp_path / "a", format)
    with pytest.raises(DataError, match="15 broken labels or pictures in"):
        open_dataset(root)
    config = DataConfig(skip_bad=True, holdout=0.2)
    data = open_dataset(root, config)
    assert (data.format, len(data.skipped)) == (format, 15)
    assert data.train is not None
    assert data.val is not None
    assert len(data.val) == 4
    # COCO: not learned from, but measured on
    usable = [f"{i:02}" for i in range(20) if format == "yolo" or i % 4]
    names = [name.lstrip("0") or "0" for name in usable] if format == "coco" else usable
    assert sorted([*data.train.ids, *data.val.ids]) == sorted({*names, *data.val.ids})
    assert not set(data.train.ids) & set(data.val.ids)
    split = "all" if format == "yolo" else "default"
    assert (data.train.name, data.val.name) == (split, f"{split} (held out)")
    assert data.note == (
        f"no validation split: 4 of the 20 pictures of {split}, chosen by a hash of their names, "
        "are held out as one (data.holdout=0.2)"
    )
    assert describe(data)[3] == data.note
    for role in ("train", "val"):  # the same, whatever is asked for
        alone = open_dataset(root, config, splits=(role,))
        index, expected = getattr(alone, role), getattr(data, role)
        assert list(index.ids) == list(expected.ids)
        assert [alone.train, alone.val].count(None) == 1
    whole = open_dataset(root, DataConfig(skip_bad=True, holdout=0))
    assert whole.val is None
    assert whole.train is not None
    assert list(whole.train.ids) == names
    assert whole.note == "no validation split, and data.holdout is 0"
    # with a split of its own nothing is held out
    data = open_dataset(root, DataConfig(skip_bad=True, train=split, val=split))
    assert data.train is not None
    assert (list(data.train.ids), data.note) == (names, "")
    with pytest.raises(UserError, match=r"data.holdout: expected a part from 0 to 0.5, got 0.6"):
        DataConfig(holdout=0.6)


def test_data_without_any_object_has_no_classes(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "a", "zebra", "ant")
    for path in (root / "Annotations").iterdir():
        text = path.read_text()
        path.write_text(text[: text.index("<object>")] + "</annotation>")
    with pytest.raises(UserError, match="no class"):
        open_dataset(root)
    assert len(open_dataset(root, classes=("zebra",)).train.boxes) == 0  # type: ignore[union-attr]


def test_describe(tmp_path: Path) -> None:
    data = open_dataset(make_coco(tmp_path / "a"))
    assert describe(data) == [
        f"coco data in {tmp_path}/a: 2 classes",
        "instances_train2017: 1 pictures, 1 boxes",
        "instances_val2017: 2 pictures, 2 boxes, 1 crowd, 1 pictures without objects",
        "  boxes of  instances_train2017  instances_val2017",
        "  cat                         0                  1",
        "  dog                         1                  1",
    ]


def test_real_data_sets(shared: Path) -> None:
    voc = open_dataset(shared / "data" / "voc2007-400")
    assert voc.train is not None
    assert voc.val is not None
    assert (len(voc.train), len(voc.val)) == (3965, 987)
    # VOC2007 test as published (http://host.robots.ox.ac.uk/pascal/VOC/voc2007/dbstats.html):
    # 12,032 objects that are not difficult, of them 285 aeroplanes and 4,528 people.
    easy = [index.labels[~index.difficult] for index in (voc.train, voc.val)]
    counts = np.bincount(np.concatenate(easy))
    assert (counts.sum(), counts[0], counts[14]) == (12_032, 285, 4_528)
    coco = open_dataset(shared / "data" / "coco-mini")
    assert coco.classes[:2] + coco.classes[-1:] == ("person", "bicycle", "toothbrush")
    assert len(coco.classes) == 80
    bccd = shared / "data" / "bccd"
    with pytest.raises(DataError, match="2 broken labels"):
        open_dataset(bccd)
    assert len(open_dataset(bccd, DataConfig(skip_bad=True)).skipped) == 2
