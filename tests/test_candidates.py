"""Which predictions are offered to an object: against a plain search over all predictions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from triscale.anchors import STRIDES, TINY_ANCHORS, YOLO3_ANCHORS, Anchors, make_grid
from triscale.candidates import FIRST, find_candidates

Box = tuple[float, float, float, float]
SIZE = (96, 160)


def by_search(
    box: Box, anchors: Anchors, ratio: float, neighbours: bool
) -> tuple[int, dict[int, tuple[float, float]]]:
    """The first choice, and every candidate with its offset, looking at each prediction in turn."""
    (width, height), centre = (
        (box[2] - box[0], box[3] - box[1]),
        (
            (box[0] + box[2]) / 2,
            (box[1] + box[3]) / 2,
        ),
    )

    def iou(anchor: tuple[float, float]) -> float:
        inter = min(width, anchor[0]) * min(height, anchor[1])
        return inter / (width * height + anchor[0] * anchor[1] - inter)

    best = max(itertools.chain(*anchors), key=iou)
    position, first, found = 0, -1, dict[int, tuple[float, float]]()
    for stride, row in zip(STRIDES, anchors, strict=False):
        x, y = centre[0] / stride, centre[1] / stride
        for j, i in itertools.product(range(SIZE[0] // stride), range(SIZE[1] // stride)):
            for anchor in row:
                sides = [width / anchor[0], height / anchor[1]]
                near = max(*sides, *(1 / side for side in sides)) < ratio
                dx, dy = x - i, y - j
                own = 0 <= dx < 1 and 0 <= dy < 1
                # half a cell around the own one, along one axis only
                beside = 0 <= dy < 1 and (-0.5 <= dx < 0 or 1 <= dx < 1.5)
                above = 0 <= dx < 1 and (-0.5 <= dy < 0 or 1 <= dy < 1.5)
                if (near or anchor == best) and (own or (neighbours and (beside or above))):
                    found[position] = (dx, dy)
                    if own and anchor == best:
                        first = position
                position += 1
    return first, found


BOXES: list[Box] = [
    (3, 4, 30, 61),
    (100, 20, 139, 90),
    (0, 0, 12, 9),
    (150, 85, 160, 96),
    (20, 3, 21, 95),
    (17.3, 22.1, 40.2, 41.9),
    (0, 0, 160, 96),
]


@pytest.mark.parametrize("anchors", [TINY_ANCHORS, YOLO3_ANCHORS])
@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 1.5, 4.0, 1000.0])
@pytest.mark.parametrize("box", BOXES)
def test_equals_a_search(box: Box, ratio: float, neighbours: bool, anchors: Anchors) -> None:
    grid = make_grid(anchors, SIZE)
    boxes = torch.tensor([[box]], dtype=torch.float64)
    found = find_candidates(boxes, grid, size=SIZE, ratio=ratio, neighbours=neighbours)
    first, expected = by_search(box, anchors, ratio, neighbours)
    active = found.active[0, 0]
    slots = found.slot[0, 0][active].tolist()
    assert len(set(slots)) == len(slots)
    got = dict(zip(slots, found.offset[0, 0][active].tolist(), strict=True))
    assert sorted(got) == sorted(expected)
    for slot, offset in got.items():
        np.testing.assert_allclose(offset, expected[slot], atol=1e-9)
    assert slots[int(found.rank[0, 0][active].argmax())] == first
    assert found.rank.max() == FIRST
    assert found.slot.min() >= 0
    assert found.slot.max() < len(grid.cells)
    sides = set(itertools.chain(*anchors))
    assert all(tuple(anchor) in sides for anchor in found.anchors[0, 0].tolist())


@pytest.mark.parametrize("neighbours", [False, True])
def test_no_objects(neighbours: bool) -> None:
    grid = make_grid(TINY_ANCHORS, SIZE)
    empty = torch.empty(2, 0, 4).double()
    found = find_candidates(empty, grid, size=SIZE, ratio=4.0, neighbours=neighbours)
    assert found.slot.shape == found.active.shape == (2, 0, 18 if neighbours else 6)


def test_a_centre_outside_belongs_to_the_nearest_cell() -> None:
    grid = make_grid(TINY_ANCHORS, SIZE)
    boxes = torch.tensor([[[100.0, 50, 220, 142]]], dtype=torch.float64)
    found = find_candidates(boxes, grid, size=SIZE, ratio=0.0, neighbours=True)
    last = 2 * 5 + 4  # of stride 32
    assert found.slot[0, 0][found.active[0, 0]].tolist() == [last * 3]


def test_what_the_reference_would_choose_outranks_everything_else() -> None:
    grid = make_grid(TINY_ANCHORS, SIZE)
    boxes = torch.tensor([[[10.0, 10, 90, 90], [12.0, 9, 60, 95]]]).double()
    found = find_candidates(boxes, grid, size=SIZE, ratio=1000.0, neighbours=True)
    assert (found.rank == FIRST).sum(-1).tolist() == [[1, 1]]
    own, others = found.rank[..., :6], found.rank[..., 6:]
    assert (own[own != FIRST] <= 1).all()
    assert (own > 0).all()
    assert (others[others != FIRST - 1.5] < 0).all()
