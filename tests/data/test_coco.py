"""COCO: labels against the reference's reader and pycocotools, and every kind of broken entry."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from triscale.data.build import finish
from triscale.data.coco import read_coco, scan_coco
from triscale.data.options import DataConfig
from triscale.errors import DataError, UserError

SKIP = DataConfig(skip_bad=True)
GOOD: dict[str, Any] = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20]}


def make(
    root: Path, annotations: list[Any], *, images: list[Any] | None = None, **changes: Any
) -> Path:
    """A COCO file with the 40 x 30 pictures 7 and 2, and their grey pictures beside it."""
    if images is None:
        images = [
            {"id": key, "file_name": f"{key}.png", "width": 40, "height": 30} for key in (7, 2)
        ]
        for image in images:
            Image.new("L", (40, 30)).save(root / image["file_name"])
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}]
    content = {"images": images, "annotations": annotations, "categories": categories, **changes}
    path = root / "labels.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("annotations", "evaluation", "ids", "boxes"),
    [
        ([], True, ["2", "7"], []),
        ([GOOD], True, ["2", "7"], [[1, 2, 11, 22]]),
        ([GOOD], False, ["7"], [[1, 2, 11, 22]]),
        ([{**GOOD, "iscrowd": 1}, {**GOOD, "image_id": 2}], False, ["2"], [[1, 2, 11, 22]]),
        ([{**GOOD, "iscrowd": 1}], True, ["2", "7"], [[1, 2, 11, 22]]),
        ([{**GOOD, "ignore": 1}], True, ["2", "7"], [[1, 2, 11, 22]]),
        ([{**GOOD, "bbox": [-0.5, 2, 41.0, 28.5]}], False, ["7"], [[0, 2, 40, 30]]),
    ],
)
def test_boxes_and_pictures(
    tmp_path: Path, annotations: list[Any], evaluation: bool, ids: list[str], boxes: list[Any]
) -> None:
    path = make(tmp_path, annotations)
    index = read_coco(path, tmp_path, DataConfig(), evaluation=evaluation).index
    assert list(index.ids) == ids
    np.testing.assert_array_equal(index.boxes, np.reshape(boxes, (-1, 4)))
    assert index.classes == ("car", "toothbrush")
    assert index.crowd.any() == any(a.get("iscrowd") for a in annotations if evaluation)


def test_filters_of_training(tmp_path: Path) -> None:
    annotations = [
        {**GOOD, "area": 50},
        {**GOOD, "area": 150, "category_id": 90},
        {**GOOD, "area": 250, "iscrowd": 1},
        {**GOOD, "area": 350, "ignore": 1},
    ]
    path = make(tmp_path, annotations)

    def areas(**settings: Any) -> list[float]:
        return read_coco(path, tmp_path, DataConfig(**settings)).index.areas.tolist()

    assert areas() == [50, 150]
    assert areas(use_crowd=True) == [50, 150, 250]
    assert areas(min_object_area=100) == [150]
    assert len(read_coco(path, tmp_path, DataConfig()).index) == 1
    assert len(read_coco(path, tmp_path, DataConfig(skip_empty=False)).index) == 2
    index = read_coco(path, tmp_path, DataConfig(min_object_area=99), evaluation=True).index
    assert index.areas.tolist() == [50, 150, 250, 350]
    assert index.labels.tolist() == [0, 1, 0, 0]


def test_the_area_defaults_to_that_of_the_box(tmp_path: Path) -> None:
    without = {key: value for key, value in GOOD.items() if key != "area"}
    path = make(tmp_path, [GOOD | {"area": 200}, without])
    assert read_coco(path, tmp_path, DataConfig()).index.areas.tolist() == [200, 200]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("nothing", "annotation number 2: expected a JSON object"),
        ({**GOOD, "image_id": 1}, "annotation 5: image_id 1 is not among"),
        ({**GOOD, "image_id": [7]}, "annotation 5: image_id .* is not among"),
        ({**GOOD, "category_id": 4}, "annotation 5: category_id 4 is not among"),
        ({**GOOD, "bbox": []}, "annotation 5: bbox is .*, expected four numbers"),
        ({**GOOD, "bbox": [1, 2, "3", 4]}, "expected four numbers"),
        ({**GOOD, "bbox": [1, 2, 3, 10**400]}, "expected four numbers"),
        ({**GOOD, "bbox": None}, "expected four numbers"),
        ({**GOOD, "area": "big"}, "area is 'big', expected a number"),
        ({**GOOD, "image_id": 10**30}, "annotation 5: image_id 10000.* is not among"),
        ({**GOOD, "image_id": True}, "annotation 5: image_id True is not among"),
        ({**GOOD, "id": 10**30, "category_id": 4}, "annotation 2: category_id 4 is not among"),
        ({**GOOD, "category_id": None, "bbox": 1}, "annotation 5: category_id None is not among"),
        ({**GOOD, "bbox": {}}, "bbox is {}, expected four numbers"),
        ({**GOOD, "bbox": json.loads("[" * 300 + "]" * 300)}, "bbox is .*, expected four numbers"),
        ({**GOOD, "bbox": [1, 2, 1e308, 1e308]}, "outside the picture"),
        ({**GOOD, "bbox": [1e308, 2, 1e308, 5]}, "outside the picture"),
        ({**GOOD, "area": None}, "area is None, expected a number"),
        ({**GOOD, "area": math.nan}, "area is nan, expected a number"),
        ({**GOOD, "area": 1e300}, r"area is 1e\+300, expected a number"),
        ({**GOOD, "area": 0}, r"7\.png: annotation 5 \('car'\): area is 0"),
        ({**GOOD, "bbox": [1, 2, 0, 9], "area": 5}, "zero area: x=1 y=2 width=0 height=9"),
        ({**GOOD, "bbox": [1, 2, -3, -9]}, "zero area"),
        ({**GOOD, "bbox": [1, 2, math.nan, 9]}, "not finite"),
        ({**GOOD, "bbox": [1, 2, math.inf, 9]}, "not finite"),
        ({**GOOD, "bbox": [1, 2, 40.5, 9]}, "outside the picture of 40x30"),
        ({**GOOD, "bbox": [90, 2, 5, 9]}, "outside the picture"),
        ({**GOOD, "bbox": [40.2, 2, 0.5, 9]}, "zero area"),
    ],
)
def test_each_broken_annotation_is_an_error_or_one_skipped_line(
    tmp_path: Path, annotation: Any, words: str
) -> None:
    path = make(tmp_path, [GOOD, annotation])
    with pytest.raises(DataError, match=r"^1 broken") as caught:
        read_coco(path, tmp_path, DataConfig())
    read = read_coco(path, tmp_path, SKIP)
    assert read.skipped == caught.value.problems
    assert read.skipped[0].startswith(f"{path}: ")
    assert re.search(words, read.skipped[0])
    assert read.index.boxes.tolist() == [[1, 2, 11, 22]]


@pytest.mark.parametrize(
    ("image", "words", "kept"),
    [
        ({}, "image number 2: no whole number as 'id'", False),
        ({"id": "9"}, "image number 2: no whole number as 'id'", False),
        ({"id": 2**63}, "image number 2: 'id' has more than 64 bits", False),
        ({"id": 9}, "image 9: no text as 'file_name'", False),
        ({"id": 9, "file_name": "./"}, "image 9: no text as 'file_name'", False),
        ({"id": 9, "file_name": "\ud800.png"}, "image 9: no text as 'file_name'", False),
        (
            {"id": 9, "file_name": "a.png", "width": 40, "height": "3"},
            "a.png: no picture size",
            True,
        ),
        ({"id": 9, "file_name": "a.png", "width": math.nan, "height": 30}, "of nanx30", False),
        ({"id": 9, "file_name": "no.png"}, "no.png: can't be read", False),
        ({"id": 9, "file_name": "a.png"}, "a.png: no picture size", True),
        ({"id": 9, "file_name": "a.png", "width": 5, "height": 4}, "a picture of 5x4", False),
        ({"id": 7, "file_name": "b.png", "width": 5, "height": 4}, "image 7: two different", False),
    ],
)
def test_each_broken_picture_is_an_error_or_one_skipped_line(
    tmp_path: Path, image: dict[str, Any], words: str, kept: bool
) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    good = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}
    path = make(tmp_path, [GOOD], images=[good, image, good])
    with pytest.raises(DataError, match=r"^1 broken"):
        read_coco(path, tmp_path, DataConfig(), evaluation=True)
    read = read_coco(path, tmp_path, SKIP, evaluation=True)
    assert len(read.skipped) == 1
    assert words in read.skipped[0]
    assert list(read.index.ids) == ["7", "9"][: 1 + kept]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no list 'images'"),
        ('{"images": [], "annotations": {}}', "no list 'annotations'"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "no usable picture"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_coco(path, tmp_path, SKIP)
    with pytest.raises(UserError, match=r"none\.json: can't be read"):
        read_coco(tmp_path / "none.json", tmp_path, SKIP)


@pytest.mark.parametrize(
    "name", ["../a.png", "a/../../b.png", "/etc/a.png", "..\\a.png", "C:a.png"]
)
def test_file_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, [], images=[{"id": 7, "file_name": name}])
    with pytest.raises(UserError, match="leads out of the folder"):
        read_coco(path, tmp_path, SKIP)


@pytest.mark.parametrize("part", ["train2017", ".."])
def test_pictures_of_a_root_are_found_by_their_url(tmp_path: Path, part: str) -> None:
    place = tmp_path / "root" / ("train2017" if part == "train2017" else ".")
    place.mkdir(parents=True)
    Image.new("L", (40, 30)).save(place / "a.png")
    image = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}
    path = make(tmp_path, [GOOD], images=[{**image, "coco_url": f"http://x/{part}/a.png"}])
    index = read_coco(path, tmp_path / "root", DataConfig()).index
    assert Path(index.paths[0]) == place / "a.png"


def test_a_fixed_list_of_classes_decides_the_numbers(tmp_path: Path) -> None:
    path = make(tmp_path, [GOOD, {**GOOD, "category_id": 90}])
    read = read_coco(path, tmp_path, SKIP, classes=("person", "Car"))
    assert read.index.classes == ("person", "Car")
    assert read.index.labels.tolist() == [1]
    assert "annotation 5 ('toothbrush'): not one of the 2 classes" in read.skipped[0]


@pytest.mark.parametrize(
    "keys", list(itertools.permutations(["images", "annotations", "categories"]))
)
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_lists_in_any_order_and_problems_in_one(
    tmp_path: Path, keys: tuple[str, ...], chunk: int
) -> None:
    annotations = [
        {**GOOD, "id": 1, "bbox": 0, "image_id": 8},
        {**GOOD, "id": 2, "category_id": 4},
        {**GOOD, "id": 3},
        5,
        {**GOOD, "id": 5, "bbox": 0},
        {**GOOD, "id": 6, "area": 0, "category_id": 90},
        {**GOOD, "id": 7, "image_id": 2},
        {**GOOD, "id": 8, "image_id": 9},
        {**GOOD, "id": 9, "bbox": [0, 0, 9, 9]},
    ]
    path = make(tmp_path, annotations)
    content = json.loads(path.read_text())
    content["images"] += [{"id": 9, "file_name": "none.png"}, content["images"][1], {"id": 2}]
    content["categories"] += [{"id": 3, "name": "cart"}, {"name": "x"}, content["categories"][0]]
    path.write_text(json.dumps({key: content[key] for key in keys}))
    scan = scan_coco(path, tmp_path, SKIP, evaluation=False, chunk=chunk)
    assert [
        line.removeprefix(f"{path}: ").removeprefix(f"{tmp_path}/") for line in scan.problems
    ] == [
        "category 3: two different entries have this id",
        "category number 4: no whole number as 'id'",
        "image 2: two different entries have this id",
        "annotation 1: image_id 8 is not among the images",
        "annotation 2: category_id 4 is not among the categories",
        "annotation number 4: expected a JSON object",
        "annotation 5: bbox is 0, expected four numbers",
        "7.png: annotation 6 ('toothbrush'): area is 0",
        "none.png: can't be read (No such file or directory)",
    ]
    (read,) = finish([scan], SKIP, classes=scan.names)
    assert list(read.index.ids) == ["2", "7"]
    assert read.index.offsets.tolist() == [0, 1, 3]
    assert read.index.boxes[:, 0].tolist() == [1, 1, 0]
    assert scan.seen is not None
    assert [Path(p).name for p in scan.seen.paths] == ["2.png", "7.png", "none.png"]
    assert scan.seen.states[:, 0].tolist() == [
        *((tmp_path / name).stat().st_size for name in ("2.png", "7.png")),
        -1,
    ]


@pytest.mark.golden
@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("labels_default", {"use_crowd": True}),
        ("labels_keep_empty", {"use_crowd": True, "skip_empty": False}),
        ("labels_min_area_2000", {"use_crowd": True, "min_object_area": 2000.0}),
        ("labels_no_crowd", {}),
    ],
)
def test_labels_equal_the_reference(
    tmp_path: Path, golden: Path, key: str, settings: dict[str, Any]
) -> None:
    source = golden / "coco_annotations.json"
    content = json.loads(source.read_text())
    for image in content["images"]:
        Image.new("L", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    config = DataConfig(skip_bad=True, inclusive_boxes=True, **settings)
    read = read_coco(source, tmp_path, config)

    # Boxes that reach more than a pixel out of the picture: the reference cuts them, we name them.
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    far: set[tuple[str, float, float]] = set()
    ids: set[int] = set()
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        right, bottom = sizes[entry["image_id"]]
        wanted = not entry["iscrowd"] or config.use_crowd
        if wanted and (x + width > right + 1 or y + height > bottom + 1):
            far.add((names[entry["image_id"]], x, y))
            if entry["area"] >= config.min_object_area:
                ids.add(entry["id"])
    assert far
    # 55 is half a pixel wide, 56 has no area: dropped by the reference, in silence.
    small = {55, 56} if config.min_object_area == 0 else {56}
    assert {int(re.findall(r"annotation (\d+)", line)[0]) for line in read.skipped} == ids | small

    expected: list[tuple[str, list[list[float]]]] = []
    for name, rows in json.loads((golden / "coco_expected.json").read_text())[key]:
        kept = [row for row in rows if (name, row[0], row[1]) not in far and row[4] >= 0]
        if kept or not config.skip_empty:
            expected.append((name, kept))
    index = read.index
    assert [Path(path).name for path in index.paths] == [name for name, _ in expected]
    for i, (name, rows) in enumerate(expected):
        ours = np.column_stack([index.boxes, index.labels])[index.objects(i)]
        np.testing.assert_allclose(ours, np.reshape(rows, (-1, 5)), rtol=1e-6, err_msg=name)


def test_real_data_holds_what_pycocotools_finds(shared: Path) -> None:
    root = shared / "data" / "coco-mini"
    source = root / "annotations" / "instances_val2017.json"
    index = read_coco(source, root / "val2017", DataConfig(), evaluation=True).index
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO(str(source))
    categories = oracle.loadCats(sorted(oracle.getCatIds()))
    assert list(index.classes) == [category["name"] for category in categories]
    assert list(index.ids) == [str(key) for key in sorted(oracle.getImgIds())]
    for i in range(len(index)):
        entries = oracle.loadAnns(oracle.getAnnIds(imgIds=int(index.ids[i])))
        rows = index.objects(i)
        xywh = np.array([entry["bbox"] for entry in entries]).reshape(-1, 4)
        np.testing.assert_allclose(index.boxes[rows][:, :2], xywh[:, :2], rtol=1e-6)
        extent = index.boxes[rows][:, 2:] - index.boxes[rows][:, :2]
        np.testing.assert_allclose(extent, xywh[:, 2:], atol=1e-4)
        np.testing.assert_allclose(index.areas[rows], [entry["area"] for entry in entries])
        assert index.crowd[rows].tolist() == [entry["iscrowd"] == 1 for entry in entries]
        assert [index.classes[label] for label in index.labels[rows]] == [
            oracle.loadCats(entry["category_id"])[0]["name"] for entry in entries
        ]
