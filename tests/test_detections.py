"""What was found in a picture: picked, counted, written, shown."""

from __future__ import annotations

import json
import pickle
from functools import partial

import cv2
import numpy as np
import pytest

from tests.finding import found
from triscale.detections import Detections
from triscale.errors import UserError

CLASSES = ("cat", "dog", "Straße")
PICTURE = np.full((50, 100, 3), 80, np.uint8)


make = partial(found, classes=CLASSES)
THREE = make((10, 20, 30, 40, 0.75, 1), (0, 0, 100, 50, 0.5, 2), (5, 5, 6, 7, 0.25, 1))


def picture() -> np.ndarray:
    return PICTURE


def test_nothing_found() -> None:
    none = make()
    assert (len(none), list(none), none.names, bool(none)) == (0, [], [], False)
    assert len(none.filter(0.5, labels="cat")) == 0
    assert (none.to_dicts(), none.to_json(), none.to_coco(1), none.to_yolo((1, 1))) == (
        [],
        "[]",
        [],
        "",
    )
    assert repr(none) == "<Detections: 0>"
    assert np.array_equal(none.draw(PICTURE), PICTURE)


def test_one_after_the_other() -> None:
    first = THREE[0]
    assert (first.name, first.score, first.box, first.label) == ("dog", 0.75, (10, 20, 30, 40), 1)
    assert [found.name for found in THREE] == THREE.names == ["dog", "Straße", "dog"]
    assert [found.score for found in THREE[1:]] == [0.5, 0.25]
    assert THREE[THREE.scores > 0.6].names == ["dog"]
    assert THREE[1:].classes == CLASSES
    with pytest.raises(IndexError):
        THREE[3]
    assert repr(THREE) == "<Detections: 3: dog 0.75, Straße 0.50, dog 0.25>"
    assert make((0, 0, 1, 1, 1, 7)).names == ["#7"]


@pytest.mark.parametrize(
    ("min_score", "labels", "scores"),
    [
        (0.0, None, [0.75, 0.5, 0.25]),
        (0.5, None, [0.75, 0.5]),
        (0.0, "dog", [0.75, 0.25]),
        (0.3, ["dog"], [0.75]),
        (0.0, ("Straße", 1), [0.75, 0.5, 0.25]),
        (0.0, 2, [0.5]),
        (0.0, [], []),
        (0.0, ["cat"], []),
    ],
)
def test_filter(min_score: float, labels: list[str] | None, scores: list[float]) -> None:
    assert THREE.filter(min_score, labels=labels).scores.tolist() == scores


def test_filter_by_a_class_that_is_not_there() -> None:
    with pytest.raises(UserError, match="no class is named 'dgo'; did you mean 'dog'"):
        THREE.filter(labels=["cat", "dgo"])


def test_formats() -> None:
    """By hand."""
    expected = {"label": "dog", "score": 0.75, "box": [10.0, 20.0, 30.0, 40.0]}
    assert THREE[:1].to_dicts() == [expected]
    assert json.loads(THREE.to_json())[0] == expected
    assert "Straße" in THREE.to_json()
    (row,) = THREE[:1].to_coco(139)
    assert row == {"image_id": 139, "category_id": 2, "bbox": [10, 20, 20, 20], "score": 0.75}
    assert [r["category_id"] for r in THREE.to_coco(1, category_ids=(17, 18, 1))] == [18, 1, 18]
    assert THREE[:2].to_yolo((50, 100)) == (
        "1 0.200000 0.600000 0.200000 0.400000 0.750000\n"
        "2 0.500000 0.500000 1.000000 1.000000 0.500000\n"
    )


def test_drawing_and_notebooks() -> None:
    with pytest.raises(UserError, match="these detections don't know theirs"):
        THREE.draw()
    assert THREE._repr_png_() is None
    drawn = THREE.draw(PICTURE)
    assert (drawn[20:41, 10] != 80).any()
    assert (PICTURE == 80).all()
    known = Detections(THREE.boxes, THREE.scores, THREE.labels, CLASSES, picture)
    png = known[:1]._repr_png_()
    assert png is not None
    back = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(back, THREE[:1].draw(PICTURE))


def test_they_travel_between_processes() -> None:
    known = Detections(THREE.boxes, THREE.scores, THREE.labels, CLASSES, picture)
    back = pickle.loads(pickle.dumps(known))
    assert back.to_dicts() == known.to_dicts()
