"""Targets against a dense oracle, and against what the reference made of the same boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.dense_oracle import (
    assert_same,
    dense_ignored,
    dense_targets,
    no_objects,
    to_dense,
)
from triscale.anchors import TINY_ANCHORS, YOLO3_ANCHORS, make_grid
from triscale.assign import assign, ignored
from triscale.types import Targets

SIZE = (96, 160)


def assign_rows(rows: list[list[float]], size: tuple[int, int] = SIZE) -> Targets:
    """Targets of one image with rows x1, y1, x2, y2, label[, weight]."""
    table = torch.tensor([[*row, 1.0][:6] for row in rows]).reshape(1, -1, 6)
    return assign(
        table[..., :4],
        table[..., 4].long(),
        table[..., 5],
        make_grid(YOLO3_ANCHORS, size),
        size=size,
    )


def random_boxes(rng: np.random.Generator, shape: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Boxes (*shape, 4) on a coarse raster, so that some share a cell; some reach outside."""
    height, width = size
    centre = rng.integers(-1, 11, (*shape, 2)) / 10 * [width, height]
    wh = rng.choice([0.5, 12.0, 30.0, 61.0, 150.0], (*shape, 2))
    return torch.from_numpy(np.concatenate([centre - wh / 2, centre + wh / 2], -1)).float()


@pytest.mark.parametrize(
    ("rows", "slots", "weights"),
    [
        ([], [], []),
        ([[-1, -1, -1, -1, -1, 0]], [0], [0]),
        # Stride 32 has 3 * 5 cells of 3 anchors; (60, 40) is in row 1, column 1; 116x90 is first.
        ([[2, -5, 118, 85, 7]], [18], [1]),
        # 30x61 is the first anchor of stride 16 (from 45 on); (60, 40) is in row 2, column 3.
        ([[45, 10, 75, 70, 7]], [45 + (2 * 10 + 3) * 3], [1]),
        # The later one of two gets the place, and its weight; padding behind doesn't take it away.
        (
            [[45, 10, 75, 70, 7, 0.3], [46, 11, 74, 71, 8, 0.7], [-1, -1, -1, -1, -1, 0]],
            [0, 45 + (2 * 10 + 3) * 3, 0],
            [0, 0.7, 0],
        ),
        # ... even with weight 0, as in the reference.
        ([[45, 10, 75, 70, 7], [46, 11, 74, 71, 8, 0.0]], [0, 0], [0, 0]),
        # A negative coordinate stops nothing. 33x23 is anchor 2 of stride 8 (from 225 on).
        ([[-20, -9, 13, 14, 1], [45, 10, 75, 70, 7]], [225 + 2, 45 + (2 * 10 + 3) * 3], [1, 1]),
    ],
    ids=["empty", "padding", "stride 32", "stride 16", "contested", "contested by 0", "negative"],
)
def test_slots(rows: list[list[float]], slots: list[int], weights: list[float]) -> None:
    targets = assign_rows(rows)
    assert targets.slot.tolist() == [slots]
    torch.testing.assert_close(targets.weight, torch.tensor([weights], dtype=torch.float32))


@pytest.mark.parametrize(
    ("x", "y", "row", "column", "centre"),
    [
        (0, 0, 0, 0, (0.0, 0.0)),
        (160, 96, 5, 9, (1.0, 1.0)),  # on the far corner: still the last cell
        (-8, 40, 2, 0, (0.0, 0.5)),
        (72, 500, 5, 4, (0.5, 1.0)),
    ],
)
def test_centre_outside_goes_to_the_nearest_cell(
    x: float, y: float, row: int, column: int, centre: tuple[float, float]
) -> None:
    targets = assign_rows([[x - 15, y - 30.5, x + 15, y + 30.5, 3]])
    assert targets.slot.item() == 45 + (row * 10 + column) * 3
    torch.testing.assert_close(targets.centre, torch.tensor([[centre]]))
    assert targets.weight.item() == 1


def test_cell_of_a_centre_on_an_edge_is_found_in_double_precision() -> None:
    # The nearest float32 left of an edge divided by 608 and multiplied by 38 may round up to it.
    size = (608, 608)
    rng = np.random.default_rng(0)
    x = np.nextafter(np.arange(1, 38, dtype=np.float32) * 16, np.float32(0))  # just left of an edge
    boxes = np.stack([x - 15, x - 30.5, x + 15, x + 30.5], -1)
    labels = rng.integers(0, 20, len(x))
    ours = assign(
        torch.from_numpy(boxes)[None],
        torch.from_numpy(labels)[None],
        torch.ones(1, len(x)),
        make_grid(YOLO3_ANCHORS, size),
        size=size,
    )
    theirs = dense_targets(
        boxes.astype(float), labels, np.ones(len(x)), size=size, anchors=YOLO3_ANCHORS
    )
    assert_same(to_dense(ours, 0, 22743), theirs)


@pytest.mark.parametrize("num_boxes", [0, 1, 40])
@pytest.mark.parametrize("size", [(96, 160), (320, 320), (100, 130)], ids=str)
def test_equals_the_dense_way(num_boxes: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(num_boxes)
    boxes = random_boxes(rng, (3, num_boxes), size)
    labels = torch.from_numpy(rng.integers(-1, 20, (3, num_boxes)))  # padding anywhere
    weights = torch.from_numpy(rng.choice([0.0, 0.35, 1.0], (3, num_boxes))).float()
    grid = make_grid(YOLO3_ANCHORS, size)
    targets = assign(boxes, labels, weights, grid, size=size)
    assert targets.weight.dtype == targets.centre.dtype == torch.float32
    for b in range(3):
        theirs = dense_targets(
            boxes[b].double().numpy(),
            labels[b].numpy(),
            weights[b].double().numpy(),
            size=size,
            anchors=YOLO3_ANCHORS,
        )
        assert_same(to_dense(targets, b, len(grid.cells)), theirs)


def test_two_feature_maps() -> None:
    grid = make_grid(TINY_ANCHORS, (96, 96))  # 27 predictions of stride 32, then 108 of stride 16
    boxes = torch.tensor([[[30.0, 30.0, 40.0, 44.0], [0.0, 0.0, 81.0, 82.0]]])  # two exact anchors
    targets = assign(boxes, torch.tensor([[0, 1]]), torch.ones(1, 2), grid, size=(96, 96))
    assert targets.slot.tolist() == [[27 + (2 * 6 + 2) * 3, (1 * 3 + 1) * 3]]
    torch.testing.assert_close(targets.scale, torch.zeros(1, 2, 2))


@pytest.mark.golden
@pytest.mark.parametrize(
    "case",
    ["odd160", "neg160", "mix160", "mixzero160", "rand416", "rand320_c80", "rand608"],
)
def test_golden_targets(case: str, golden: Path) -> None:
    arrays = np.load(golden / "prefetch_targets.npz")
    boxes = arrays[f"{case}_gt"]
    if case == "neg160":
        boxes = boxes[:1]  # the reference stops at the second box, whose x1 is negative
    side, n = int(arrays[f"{case}_size"]), int(arrays[f"{case}_N"])
    ratios = arrays[f"{case}_mix"] if f"{case}_mix" in arrays else np.ones(len(boxes))
    rows = arrays[f"{case}_rows"]
    theirs = no_objects(n)
    theirs.objectness[rows] = arrays[f"{case}_obj"][:, 0]
    theirs.centre[rows] = arrays[f"{case}_ctr"]
    theirs.scale[rows] = arrays[f"{case}_scl"]
    theirs.box_weight[rows] = arrays[f"{case}_wgt"][:, 0]
    theirs.label[rows] = arrays[f"{case}_cls"].argmax(-1)
    targets = assign(
        torch.from_numpy(boxes[None, :, :4]),
        torch.from_numpy(boxes[None, :, 4]).long(),
        torch.from_numpy(ratios)[None],
        make_grid(YOLO3_ANCHORS, (side, side)),
        size=(side, side),
    )
    assert_same(to_dense(targets, 0, n), theirs)


@pytest.mark.parametrize(
    ("boxes", "labels", "expected"),
    [
        ([], [], [False, False, False, False]),
        ([[-1, -1, -1, -1]], [-1], [False, False, False, False]),
        ([[0, 0, 10, 10]], [-1], [False, False, False, False]),  # the label alone says padding
        ([[0, 0, 10, 10]], [4], [True, False, True, False]),  # IoU 1, exactly 0.7, 0.8, 0
        ([[50, 50, 60, 60], [0, 0, 10, 10]], [0, 1], [True, False, True, False]),
    ],
    ids=["empty", "padding", "padding by label", "threshold", "maximum over boxes"],
)
def test_ignored(boxes: list[list[float]], labels: list[int], expected: list[bool]) -> None:
    preds = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 7], [0, 2, 10, 10], [9, 9, 9, 9]]])
    boxes_xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    got = ignored(preds.float(), boxes_xyxy, torch.tensor([labels], dtype=torch.int64))
    assert got.tolist() == [expected]


def test_ignored_equals_the_dense_way() -> None:
    rng = np.random.default_rng(5)
    boxes = random_boxes(rng, (2, 6), SIZE)
    labels = torch.from_numpy(rng.integers(-1, 3, (2, 6)))
    preds = boxes.repeat(1, 50, 1) + torch.from_numpy(rng.normal(0, 2, (2, 300, 4))).float()
    got = ignored(preds, boxes, labels, threshold=0.6)
    assert 50 < got.sum() < 550  # both answers occur
    for b in range(2):
        real = boxes[b][labels[b] >= 0].double().numpy()
        # Some predictions are inverted: the package counts them as empty, so they match nothing.
        upright = (preds[b, :, 2:] > preds[b, :, :2]).all(-1).numpy()
        theirs = dense_ignored(preds[b].double().numpy(), real, threshold=0.6)
        np.testing.assert_array_equal(got[b].numpy()[upright], theirs[upright])


def test_ignored_survives_an_exploding_prediction() -> None:
    preds = torch.tensor([[[-torch.inf, -torch.inf, torch.inf, torch.inf], [0, 0, 10, 10]]])
    assert ignored(preds, preds[:, 1:], torch.tensor([[0]])).tolist() == [[False, True]]


@pytest.mark.golden
@pytest.mark.parametrize("num_classes", [20, 80])
def test_golden_ignored(num_classes: int, golden: Path) -> None:
    arrays = np.load(golden / "merged_targets.npz")
    preds = torch.from_numpy(arrays[f"C{num_classes}_box_preds"])
    boxes = torch.from_numpy(arrays[f"C{num_classes}_gt_boxes"])
    given = arrays[f"C{num_classes}_in_obj"][..., 0]
    merged = arrays[f"C{num_classes}_smooth0_obj"][..., 0]
    labels = torch.where(boxes[..., 0] < 0, -1, 0)
    got = ignored(preds, boxes, labels).numpy()
    np.testing.assert_array_equal(got & (given == 0), merged == -1)
    assert (merged == -1).sum() > 30


def test_no_value_is_read_back_from_the_device() -> None:
    # A tensor on the meta device has a shape but no values: whoever asks for one gets an error.
    grid = make_grid(YOLO3_ANCHORS, SIZE, device=torch.device("meta"))
    boxes = torch.empty(2, 5, 4, device="meta")
    labels = torch.empty(2, 5, dtype=torch.int64, device="meta")
    targets = assign(boxes, labels, torch.empty(2, 5, device="meta"), grid, size=SIZE)
    assert [tuple(field.shape) for field in targets] == [
        (2, 5), (2, 5, 2), (2, 5, 2), (2, 5), (2, 5), (2, 5)
    ]  # fmt: skip
    assert ignored(torch.empty(2, 945, 4, device="meta"), boxes, labels).shape == (2, 945)
