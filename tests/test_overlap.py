"""GIoU and CIoU of paired boxes against the papers' formulas, written out with plain numbers."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from triscale.overlap import penalised_iou

Box = tuple[float, float, float, float]


def by_hand(a: Box, b: Box, kind: str) -> float:
    """One pair, as in Algorithm 1 of the GIoU paper and equations 5 to 12 of the CIoU paper."""
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - inter
    iou = inter / union
    width = max(a[2], b[2]) - min(a[0], b[0])
    height = max(a[3], b[3]) - min(a[1], b[1])
    if kind == "giou":
        return iou - (width * height - union) / (width * height)
    centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b)]
    distance = math.dist(*centres) ** 2 / (width**2 + height**2)
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = v / (1 - iou + v) if v else 0
    return iou - distance - alpha * v


PAIRS: list[tuple[Box, Box]] = [
    ((0, 0, 10, 10), (0, 0, 10, 10)),
    ((0, 0, 10, 10), (20, 0, 30, 10)),
    ((0, 0, 10, 20), (5, 5, 35, 15)),
    ((1, 2, 3, 4), (-50, -60, 70, 80)),
    ((0, 0, 0.5, 100), (0, 0, 100, 0.5)),
]


@pytest.mark.parametrize("kind", ["giou", "ciou"])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_equals_the_papers(a: Box, b: Box, kind: Literal["giou", "ciou"]) -> None:
    got = penalised_iou(torch.tensor([a]).double(), torch.tensor([b]).double(), kind=kind)
    np.testing.assert_allclose(got, [by_hand(a, b, kind)], atol=1e-6)


def test_two_squares_side_by_side() -> None:
    """A gap of one square: nothing is shared, and a third of what surrounds them is neither."""
    a, b = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]])
    torch.testing.assert_close(penalised_iou(a, b, kind="giou"), torch.tensor([-1 / 3]))
    torch.testing.assert_close(penalised_iou(a, b, kind="ciou"), torch.tensor([-4 / 10]))


@pytest.mark.parametrize("kind", ["giou", "ciou"])
def test_no_pairs(kind: Literal["giou", "ciou"]) -> None:
    assert penalised_iou(torch.empty(2, 0, 4), torch.empty(2, 0, 4), kind=kind).shape == (2, 0)


@pytest.mark.parametrize("kind", ["giou", "ciou"])
@pytest.mark.parametrize("box", [(0, 0, 0, 0), (3, 3, 3, 9), (-1, -1, -1, -1), (0, 0, 1e4, 1e4)])
def test_gradients_stay_finite(box: Box, kind: Literal["giou", "ciou"]) -> None:
    """Boxes without area, the padding, equal and far-off boxes."""
    truth = torch.tensor([box, (0.0, 0, 8, 8), box, box])
    guess = torch.tensor([box, box, (0.0, 0, 8, 8), (-9e3, -9e3, -8e3, -8e3)], requires_grad=True)
    lack = 1 - penalised_iou(guess, truth, kind=kind)
    lack.sum().backward()
    assert guess.grad is not None
    assert lack.isfinite().all()
    assert guess.grad.isfinite().all()
    assert (lack > -1e-5).all()
    assert (lack < 3.01).all()


@pytest.mark.parametrize("kind", ["giou", "ciou"])
def test_descent_finds_the_box(kind: Literal["giou", "ciou"]) -> None:
    """Far beyond the loss itself: the sides are learned as logarithms, as in the network."""
    truth = torch.tensor([[40.0, 40, 60, 80]])
    place = torch.tensor([[35.0, 50.0, 2.5, 2.5]], requires_grad=True)  # centre, log of the sides

    def decoded() -> Tensor:
        half = place[:, 2:].exp() / 2
        return torch.cat([place[:, :2] - half, place[:, :2] + half], 1)

    optimizer = torch.optim.Adam([place], lr=0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        (1 - penalised_iou(decoded(), truth, kind=kind)).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(decoded().detach(), truth, atol=1.0)
