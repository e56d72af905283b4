"""Which anchors are worth it: each reason against them by hand, and the tables."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from triscale.anchor_choice import class_rows, objection, overall_rows, propose, shapes_of
from triscale.anchor_plot import write_plot
from triscale.anchors import TINY_ANCHORS
from triscale.data.open import Data
from triscale.kmeans import Shapes, flat

SQUARE, WIDE = np.array([[40.0, 40.0]]), np.array([[80.0, 20.0]])


def boxes(square: int, wide: int) -> Shapes:
    """So many of each; a square overlaps a wide one by a third."""
    return np.concatenate([SQUARE.repeat(square, 0), WIDE.repeat(wide, 0)])


@pytest.mark.parametrize(
    ("shapes", "found", "reason"),
    [
        (boxes(0, 0), WIDE, "0 boxes say too little about objects to come, 100 for each of 1"),
        (boxes(0, 99), WIDE, "99 boxes say too little"),
        (boxes(0, 100), WIDE, ""),
        (boxes(80, 20), WIDE, "80% of the boxes overlap a usual one by half, 80% are enough"),
        (boxes(47, 53), WIDE, ""),
        (boxes(48, 52), WIDE, "52% with k-means', 5 points more are wanted"),
        (boxes(0, 200), WIDE.repeat(2, 0), "k-means finds fewer shapes than there are anchors"),
    ],
)
def test_objection(shapes: Shapes, found: Shapes, reason: str) -> None:
    said = objection(shapes, SQUARE, found)
    assert said.startswith(reason)
    assert bool(said) == bool(reason)


def test_shapes_are_parts_of_their_pictures(data: Data) -> None:
    """Against a plain loop over the pictures."""
    index = data.train
    assert index
    expected: list[list[float]] = []
    for image, (height, width) in enumerate(index.sizes.tolist()):
        for x1, y1, x2, y2 in index.boxes[index.objects(image)].tolist():
            expected.append([(x2 - x1) / width, (y2 - y1) / height])
    np.testing.assert_allclose(shapes_of(index), expected, rtol=1e-6)


@pytest.mark.parametrize(("number", "strides"), [(2, 2), (3, 3), (6, 2), (9, 3)])
def test_what_is_proposed_is_what_a_network_takes(number: int, strides: int) -> None:
    shapes = np.random.default_rng(0).uniform(4, 300, (9000, 2))
    found = propose(shapes, number, strides, rng=np.random.default_rng(1))
    assert [len(row) for row in found] == [number // strides] * strides
    areas = flat(found).prod(1).reshape(strides, -1)
    assert (areas[:-1].min(1) >= areas[1:].max(1)).all(), "the largest at the deepest stride"
    assert found == propose(shapes, number, strides, rng=np.random.default_rng(1))


def test_tables() -> None:
    """Three squares and one wide box: IoU 1 with their own kind, a third with the other."""
    shapes, labels = boxes(3, 1), np.array([0, 0, 1, 1], np.int32)
    square, both = (((40.0, 40.0),), ((1.0, 1.0),)), (((80.0, 20.0),), ((40.0, 40.0),))
    assert overall_rows(shapes, [square, both]) == [
        ("boxes that overlap one by half", "75.0%", "100.0%"),
        ("by a quarter", "100.0%", "100.0%"),
        ("mean IoU with the best one", "0.833", "1.000"),
        ("boxes that go to stride 32", "100.0%", "25.0%"),
        ("boxes that go to stride 16", "0.0%", "75.0%"),
    ]
    assert class_rows(shapes, labels, ["a", "b", "c"], sets=[square, both]) == [
        ("a", "2", "100.0%", "100.0%"),
        ("b", "2", "50.0%", "100.0%"),
        ("c", "0", "-", "-"),
    ]


@pytest.mark.parametrize("number", [1, 6000])
def test_plot(number: int, tmp_path: Path) -> None:
    shapes = np.random.default_rng(0).uniform(4, 300, (number, 2))
    path = tmp_path / "new" / "anchors.png"
    rng = np.random.default_rng(0)
    write_plot(path, shapes, TINY_ANCHORS, TINY_ANCHORS, rng=rng)
    image = cv2.imread(str(path))
    assert image is not None
    assert image.shape[1] == 1320
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
