"""Box arithmetic, for numpy and torch, against counted pixels and against the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from triscale.boxes import box_area, box_iou, clip_boxes, intersection, pairwise_iou

Maker = Callable[[Any], Any]


def as_torch(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, np.float32))


@pytest.fixture(params=[np.float32, np.float64, torch.float32])
def make(request: pytest.FixtureRequest) -> Maker:
    """Makes an array of one of the kinds that the functions take."""
    if request.param is torch.float32:
        return as_torch
    return lambda values: np.asarray(values, request.param)


def integer_boxes(number: int, *, seed: int) -> NDArray[np.int64]:
    """Random boxes (n, 4) on a grid of 12 x 12 pixels; some are empty."""
    corners = np.random.default_rng(seed).integers(0, 13, (number, 2, 2))
    return np.sort(corners, axis=1).reshape(number, 4)


def pixels_of(box: NDArray[np.int64]) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = box.tolist()
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ((3, 3, 3, 3), 0),
        ((0, 0, 5, 4), 20),
        ((-2, -1, 2, 1), 8),
        ((5, 0, 0, 4), 0),  # inverted
        ((5, 4, 0, 0), 0),  # inverted twice
    ],
)
def test_area(make: Maker, box: tuple[int, ...], area: float) -> None:
    assert float(box_area(make(box))) == area
    assert box_area(make([[box] * 3] * 2)).shape == (2, 3)


def test_no_boxes(make: Maker) -> None:
    none, some = make(np.zeros((0, 4))), make(np.ones((3, 4)))
    assert box_area(none).shape == (0,)
    assert intersection(none, none).shape == (0,)
    assert pairwise_iou(none, some).shape == (0, 3)
    assert pairwise_iou(some, none).shape == (3, 0)


def test_iou_counts_pixels(make: Maker) -> None:
    a, b = integer_boxes(40, seed=1), integer_boxes(30, seed=2)
    both = [[len(pixels_of(p) & pixels_of(q)) for q in b] for p in a]
    either = [[len(pixels_of(p) | pixels_of(q)) for q in b] for p in a]
    np.testing.assert_array_equal(intersection(make(a)[:, None], make(b)[None]), both)
    expected = np.array(both) / np.maximum(either, 1)  # two empty boxes: 0
    np.testing.assert_allclose(pairwise_iou(make(a), make(b)), expected, rtol=1e-6)
    np.testing.assert_allclose(box_iou(make(a)[:30], make(b)), np.diag(expected), rtol=1e-6)
    assert (expected == 0).any()
    assert (expected > 0.5).any()


@pytest.mark.golden
def test_iou_equals_the_reference(make: Maker, golden: Path) -> None:
    arrays = np.load(golden / "bbox_utils.npz")
    ours = pairwise_iou(make(arrays["a"]), make(arrays["b"]))
    assert ours.dtype == make(0.0).dtype
    # The reference computes in float64; in float32 the edges themselves are rounded.
    rtol, atol = (1e-12, 0) if ours.dtype == np.float64 else (1e-5, 1e-7)
    np.testing.assert_allclose(ours, arrays["iou"], rtol=rtol, atol=atol)


def test_iou_of_a_box_with_itself(make: Maker) -> None:
    boxes = make([(0, 0, 1, 1), (2, 3, 400, 500.5), (-5, -5, -1, -2)])
    np.testing.assert_allclose(box_iou(boxes, boxes), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        (np.zeros((0, 4)), np.zeros((0, 4))),
        ([(0, 0, 8, 6)], [(0, 0, 8, 6)]),
        ([(-1, -2, 9, 7)], [(0, 0, 8, 6)]),
        ([(-3, 1, -1, 2), (7.5, 5.5, 20, 30)], [(0, 1, 0, 2), (7.5, 5.5, 8, 6)]),
    ],
)
def test_clip(boxes: Any, expected: Any) -> None:
    given = np.array(boxes, np.float32)
    clipped = clip_boxes(given, (6, 8))
    assert clipped.dtype == np.float32
    np.testing.assert_array_equal(clipped, expected)
    np.testing.assert_array_equal(given, np.array(boxes, np.float32))  # not changed


@pytest.mark.golden
def test_clip_equals_the_reference(golden: Path) -> None:
    arrays = np.load(golden / "bbox_utils.npz")
    # The reference's last coordinate is the last pixel, ours is the edge behind it.
    ours = clip_boxes(arrays["xyxy"].astype(np.float32), (479, 639))
    np.testing.assert_array_equal(ours, arrays["clipped_640x480"])
