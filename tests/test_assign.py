"""Targets against a dense oracle, and against what the reference made of the same boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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
from triscale.anchors import TINY_ANCHORS, YOLO3_ANCHORS, Grid, make_grid
from triscale.assign import AssignConfig, assign, ignored
from triscale.candidates import find_candidates
from triscale.decode import decode_boxes
from triscale.errors import UserError
from triscale.types import Predictions, Targets

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
        (2, 5), (2, 5, 2), (2, 5, 2), (2, 5, 4), (2, 5), (2, 5), (2, 5)
    ]  # fmt: skip
    assert ignored(torch.empty(2, 945, 4, device="meta"), boxes, labels).shape == (2, 945)


MORE = {"ratio": 4.0, "neighbours": True}


def said(targets: Targets, grid: Grid) -> Predictions:
    """The network that says what the targets want, and nothing anywhere else."""
    batch, n = len(targets.slot), len(grid.cells)
    index = torch.where(targets.weight > 0, targets.slot, n)[..., None].expand(-1, -1, 2)
    centres, scales = (
        torch.zeros(batch, n + 1, 2).scatter(1, index, field)[:, :n]
        for field in (targets.centre.logit(), targets.scale)
    )
    return Predictions(centres, scales, torch.zeros(batch, n), torch.zeros(batch, n, 5))


@pytest.mark.parametrize("more", [{}, {"ratio": 4.0}, {"neighbours": True}, MORE])
@pytest.mark.parametrize("scale_x_y", [2.0, 2.5])
def test_the_targets_decode_to_the_boxes(scale_x_y: float, more: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    low = torch.from_numpy(rng.uniform(1, [100, 60], (2, 9, 2))).float()
    boxes = torch.cat([low, low + torch.from_numpy(rng.uniform(3, 60, (2, 9, 2))).float()], -1)
    labels = torch.tensor([[0, 1, 2, 3, 4, -1, 0, 0, 1]] * 2)
    grid = make_grid(YOLO3_ANCHORS, SIZE, scale_x_y=scale_x_y)
    config = AssignConfig(**more)
    targets = assign(boxes, labels, torch.ones(2, 9), grid, size=SIZE, config=config)
    decoded = decode_boxes(said(targets, grid), grid)
    found = decoded.gather(1, targets.slot[..., None].expand(-1, -1, 4))
    used = targets.weight > 0
    torch.testing.assert_close(found[used], targets.box[used], rtol=0, atol=1e-3)
    assert used.sum() > 15 * (3 if more.get("neighbours") else 1) * (2 if "ratio" in more else 0.9)
    for slots, mine in zip(targets.slot, used, strict=True):  # each prediction has one object
        assert len(slots[mine].unique()) == mine.sum()


def test_more_positives_leave_the_first_choices_alone() -> None:
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, (3, 8), SIZE)
    labels = torch.from_numpy(rng.integers(-1, 4, (3, 8)))
    weights = torch.rand(3, 8, generator=torch.Generator().manual_seed(2))
    grid = make_grid(YOLO3_ANCHORS, SIZE, scale_x_y=2.0)
    few = assign(boxes, labels, weights, grid, size=SIZE)
    many = assign(boxes, labels, weights, grid, size=SIZE, config=AssignConfig(**MORE))
    for b in range(3):
        given = {
            slot: (label, weight)
            for slot, label, weight in zip(
                many.slot[b].tolist(), many.label[b].tolist(), many.weight[b].tolist(), strict=True
            )
            if weight > 0
        }
        for m in few.weight[b].nonzero()[:, 0].tolist():
            first = few.label[b, m].item(), few.weight[b, m].item()
            assert given[int(few.slot[b, m])] == first
    assert (many.weight > 0).sum() > 3 * (few.weight > 0).sum()


def test_a_first_choice_beats_a_neighbour_whatever_the_order() -> None:
    # Both are 30x61, in cells side by side of stride 16; each would take the other's prediction.
    rows = [[46.0, 10, 76, 71], [57.0, 10, 87, 71]]
    grid = make_grid(YOLO3_ANCHORS, SIZE, scale_x_y=2.0)
    for order in ([0, 1], [1, 0]):
        targets = assign(
            torch.tensor([[rows[i] for i in order]]),
            torch.tensor([order]),
            torch.ones(1, 2),
            grid,
            size=SIZE,
            config=AssignConfig(neighbours=True),
        )
        owner = dict(zip(targets.slot[0].tolist(), targets.label[0].tolist(), strict=True))
        assert owner[45 + (2 * 10 + 3) * 3] == 0
        assert owner[45 + (2 * 10 + 4) * 3] == 1


def test_dynamic_takes_what_the_network_is_near_to() -> None:
    grid = make_grid(YOLO3_ANCHORS, SIZE, scale_x_y=2.0)
    boxes = torch.tensor([[[40.0, 20, 80, 75], [0.0, 0, 8, 8], [-1.0, -1, -1, -1]]])
    labels = torch.tensor([[3, 1, -1]])
    everything = AssignConfig(ratio=1000.0, neighbours=True)
    many = assign(boxes, labels, torch.ones(1, 3), grid, size=SIZE, config=everything)
    pairs = many.slot.shape[1] // 3
    mine = many.slot[0, :pairs][many.weight[0, :pairs] > 0]
    # Three of the first object's candidates lie right upon it, and one is surer than the others;
    # another one is as sure but of another class.
    predictions = said(many, grid)
    wrong = torch.ones(len(grid.cells), dtype=torch.bool)
    wrong[mine[[2, 5, 9]]] = False
    predictions.scales[0, wrong] = -9.0
    predictions.classes[0, mine[2], 3] = 5.0
    predictions.classes[0, mine[7], 0] = 5.0
    for dynamic, expected in ((10, [2, 5, 9]), (2, [2, 5]), (1, [2])):
        config = replace(everything, dynamic=dynamic)
        few = assign(
            boxes,
            labels,
            torch.ones(1, 3),
            grid,
            size=SIZE,
            config=config,
            predictions=predictions,
        )
        got = few.slot[0, :pairs][few.weight[0, :pairs] > 0].tolist()
        # the IoUs' sum of three is 3 less a rounding error, which counts as 2
        assert set(got) <= {int(mine[i]) for i in expected}
        assert mine[2] in got
        assert len(got) >= min(len(expected), 2)
        # the second object is far from everything, and still has one
        assert (few.weight[0, pairs : 2 * pairs] > 0).sum() == 1
        assert (few.weight[0, 2 * pairs :] == 0).all()


@pytest.mark.parametrize("ratio", [0.0, 4.0, 1000.0])
def test_a_lone_object_gets_all_that_is_offered(ratio: float) -> None:
    grid = make_grid(YOLO3_ANCHORS, SIZE, scale_x_y=2.0)
    boxes = torch.tensor([[[40.0, 20, 80, 75]]])
    found = find_candidates(boxes.double(), grid, size=SIZE, ratio=ratio, neighbours=True)
    config = AssignConfig(ratio=ratio, neighbours=True)
    ones = torch.ones(1, 1)
    targets = assign(boxes, torch.tensor([[3]]), ones, grid, size=SIZE, config=config)
    assert ((targets.weight > 0) == found.active.flatten(1)).all()


def test_dynamic_without_objects() -> None:
    grid = make_grid(YOLO3_ANCHORS, SIZE, scale_x_y=2.0)
    n, none = len(grid.cells), torch.empty(2, 0)
    targets = assign(
        torch.empty(2, 0, 4),
        none.long(),
        none,
        grid,
        size=SIZE,
        config=AssignConfig(ratio=4.0, neighbours=True, dynamic=10),
        predictions=Predictions(
            torch.zeros(2, n, 2), torch.zeros(2, n, 2), torch.zeros(2, n), torch.zeros(2, n, 5)
        ),
    )
    assert targets.slot.shape == (2, 0)


def test_dynamic_reads_nothing_back_from_the_device() -> None:
    meta = torch.device("meta")
    grid = make_grid(YOLO3_ANCHORS, SIZE, scale_x_y=2.0, device=meta)
    n = len(grid.cells)
    predictions = Predictions(
        *(torch.empty(2, *shape, device=meta) for shape in ((n, 2), (n, 2), (n,), (n, 5)))
    )
    targets = assign(
        torch.empty(2, 5, 4, device=meta),
        torch.empty(2, 5, dtype=torch.int64, device=meta),
        torch.empty(2, 5, device=meta),
        grid,
        size=SIZE,
        config=AssignConfig(ratio=4.0, neighbours=True, dynamic=10),
        predictions=predictions,
    )
    assert targets.slot.shape == (2, 5 * 27)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"ratio": 1.0}, "assign.ratio: expected 0 or more than 1, got 1.0"),
        ({"ratio": float("inf")}, "assign.ratio"),
        ({"dynamic": -1}, "assign.dynamic: expected at least 0, got -1"),
        ({"iou_power": -1.0}, "assign.iou_power"),
        ({"score_power": float("nan")}, "assign.score_power"),
    ],
)
def test_settings(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        AssignConfig(**values)
