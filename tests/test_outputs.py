"""What is written: lines, COCO results that COCO's own tool reads, YOLO files, drawings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from triscale.data.classes import COCO_CLASSES, VOC_CLASSES
from triscale.detections import Detections
from triscale.errors import UserError
from triscale.outputs import (
    CocoResults,
    Drawings,
    JsonLines,
    Table,
    YoloFiles,
    coco_category_ids,
)
from triscale.sources import Shot, Source

CLASSES = ("cat", "dog")
IMAGE = np.full((40, 80, 3), 90, np.uint8)
NONE = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int), CLASSES)
TWO = Detections(
    np.float32([[10, 10, 30, 20], [0, 0, 80, 40]]),
    np.float32([0.75, 0.5]),
    np.array([1, 0]),
    CLASSES,
)


def still(path: str) -> Shot:
    place = Path(path)
    return Shot(Source("picture", path, place), place.stem, IMAGE)


def moving(name: str, frame: int) -> Shot:
    return Shot(Source("video", name, Path(name)), Path(name).stem, IMAGE, frame, frame * 40.0, 25)


def test_json_lines() -> None:
    lines: list[str] = []
    output = JsonLines(lines.append)
    output.add(still("a/p.jpg"), TWO[:1])
    output.add(moving("v.mp4", 3), NONE)
    output.close()
    assert [json.loads(line) for line in lines] == [
        {
            "image": "a/p.jpg",
            "size": [80, 40],
            "detections": [{"label": "dog", "score": 0.75, "box": [10, 10, 30, 20]}],
        },
        {"video": "v.mp4", "size": [80, 40], "frame": 3, "time_ms": 120, "detections": []},
    ]


def test_table() -> None:
    lines: list[str] = []
    shots = [still("a.jpg"), moving("v.mp4", 0), moving("v.mp4", 1), moving("w.mp4", 0)]
    shots.append(still("b.jpg"))
    output = Table(lines.append, [shot.source for shot in shots], CLASSES)
    for shot, found in zip(shots, [TWO, TWO, TWO[:1], NONE, NONE], strict=True):
        output.add(shot, found)
    output.close()
    assert lines == [
        "picture  label  score  x1 y1 x2 y2",
        "a.jpg    dog    0.750  10 10 30 20",
        "a.jpg    cat    0.500  0 0 80 40",
        "v.mp4: 2 frames: dog 2, cat 1",
        "w.mp4: 1 frame: no objects",
        "b.jpg    -",
    ]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        ([], []),
        (["b.jpg", "a.jpg"], [1, 2]),
        (["000000000139.jpg", "x/7.png"], [139, 7]),  # as COCO names its pictures
        (["7.jpg", "x/7.png"], [1, 2]),
        (["7.jpg", "b.jpg"], [1, 2]),
    ],
)
def test_coco_results(names: list[str], ids: list[int], tmp_path: Path) -> None:
    """pycocotools reads both files; what it says is compared."""
    shots = [still(name) for name in names]
    output = CocoResults(tmp_path / "found.json", [shot.source for shot in shots], CLASSES)
    for shot in shots:
        output.add(shot, TWO)
    assert not list(tmp_path.glob("*.json")), "not before they are whole"
    output.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.images.json", "found.json"]
    truth = COCO(str(tmp_path / "found.images.json"))
    assert [(i["id"], i["file_name"]) for i in truth.dataset["images"]] == [
        *zip(ids, names, strict=True)
    ]
    assert {c["id"]: c["name"] for c in truth.dataset["categories"]} == {1: "cat", 2: "dog"}
    if not names:
        assert json.loads((tmp_path / "found.json").read_text()) == []
        return
    rows = truth.loadRes(str(tmp_path / "found.json")).dataset["annotations"]
    assert [row["image_id"] for row in rows] == [i for i in ids for _ in range(2)]
    assert rows[0]["bbox"] == [10, 10, 20, 10]
    assert rows[0]["area"] == 200
    assert [row["category_id"] for row in rows[:2]] == [2, 1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_coco_results_on_a_full_disk(tmp_path: Path) -> None:
    """The file that was wanted is named, and nothing is left."""
    (tmp_path / f".found.json.{os.getpid()}.tmp").symlink_to("/dev/full")
    output = CocoResults(tmp_path / "found.json", [], CLASSES)
    output.add(still("a.jpg"), TWO)
    with pytest.raises(OSError, match=r"No space left on device: '.*/found\.json'"):
        output.close()
    assert not list(tmp_path.iterdir())


def test_coco_results_of_frames(tmp_path: Path) -> None:
    shots = [moving("v.mp4", 0), moving("v.mp4", 5), still("12.jpg")]
    output = CocoResults(tmp_path / "found.json", [shot.source for shot in shots], CLASSES)
    for shot in shots:
        output.add(shot, TWO[:1])
    output.close()
    images = json.loads((tmp_path / "found.images.json").read_text())["images"]
    assert [(i["id"], i.get("frame"), i.get("time_ms")) for i in images] == [
        (1, 0, 0),
        (2, 5, 200),
        (3, None, None),
    ]


def test_cocos_own_category_ids(shared: Path) -> None:
    """Against COCO's annotations; Darknet's names for the same classes are understood."""
    (path, *_) = sorted((shared / "data" / "coco-mini" / "annotations").glob("*.json"))
    categories = json.loads(path.read_text())["categories"]
    ids = coco_category_ids(COCO_CLASSES)
    assert dict(zip(COCO_CLASSES, ids, strict=True)) == {c["name"]: c["id"] for c in categories}
    darknets = (shared / "data" / "pictures" / "coco.names").read_text().split("\n")[:80]
    assert coco_category_ids(darknets) == ids


def test_category_ids_of_other_classes() -> None:
    assert coco_category_ids(()) == ()
    assert coco_category_ids(COCO_CLASSES[:3]) == (1, 2, 3)
    assert coco_category_ids(VOC_CLASSES) == tuple(range(1, 21))


def test_yolo_files(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    output = YoloFiles(folder, CLASSES)
    output.add(still("a.jpg"), TWO)
    output.add(still("b.jpg"), NONE)
    output.add(moving("v.mp4", 12), TWO[:1])
    output.close()
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "classes.txt": "cat\ndog\n",
        "a.txt": "1 0.250000 0.375000 0.250000 0.250000 0.750000\n"
        "0 0.500000 0.500000 1.000000 1.000000 0.500000\n",
        "b.txt": "",
        "v-000012.txt": "1 0.250000 0.375000 0.250000 0.250000 0.750000\n",
    }
    with pytest.raises(UserError, match="holds text files already"):
        YoloFiles(folder, CLASSES)


def test_drawings(tmp_path: Path) -> None:
    shots = [still("a.bmp"), moving("v.avi", 0), moving("v.avi", 1), moving("w.avi", 0)]
    sources = list(dict.fromkeys(shot.source for shot in shots))
    output = Drawings(tmp_path, sources)
    assert output.summary() == f"nothing drawn in {tmp_path}"
    for shot in shots:
        output.add(shot, TWO)
    output.close()
    assert output.summary() == f"1 drawn picture and 2 drawn videos in {tmp_path}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "v.mp4", "w.mp4"]
    assert int(cv2.VideoCapture(str(tmp_path / "v.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)) == 2
    drawn = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR_RGB).astype(int)
    assert np.abs(drawn - TWO.draw(IMAGE)).mean() < 10


def test_a_camera_that_is_slow(tmp_path: Path) -> None:
    """The video lasts as long as it took: 2 frames a second, of 25 that are stated."""
    source = Source("live", "camera:0", 0)
    output = Drawings(tmp_path, [source])
    for frame in range(5):
        output.add(Shot(source, "camera-0", IMAGE, frame, 500.0 * frame, 25), NONE)
    output.close()
    frames = cv2.VideoCapture(str(tmp_path / "camera-0.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)
    assert frames == 50


def test_no_source_is_replaced(tmp_path: Path) -> None:
    """By its own drawing or by another one's."""
    for words in (["v.mp4"], ["x/v.avi", "v.mp4"]):
        sources = [Source("video", word, tmp_path / word) for word in words]
        with pytest.raises(UserError, match=r"v\.mp4: would be replaced"):
            Drawings(tmp_path, sources)
