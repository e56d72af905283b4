"""Targets and loss, forward and backward: one row per object against one row per prediction.

The dense way is the reference's, in torch: each picture's targets as arrays over all N predictions
and C classes, made on the loader's side; the overlap of every prediction with every object in one
(B, N, M) product; both merged; a loss over every element. Ours is `assign`, `ignored` and
`yolo_loss`. Both start from the same predictions and end with the same gradients, which is checked.
Freed memory stays with the process, as in training: without it either way spends most of its time
on pages that the system fills with zeros.

    python benchmarks/loss.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from harness import Report, arguments, in_turns, ratio
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from triscale.anchors import YOLO3_ANCHORS, Grid, make_grid
from triscale.assign import assign, ignored
from triscale.boxes import pairwise_iou
from triscale.decode import decode_boxes
from triscale.loss import LossConfig, yolo_loss
from triscale.step import keep_freed_memory
from triscale.types import Predictions

SIDE = 416
OBJECTS = (4, 12)  # of a picture, 8 on average


class Truth(NamedTuple):
    """The objects of a batch, as in `Batch`."""

    boxes: Tensor  # (B, M, 4)
    labels: Tensor  # (B, M)
    weights: Tensor  # (B, M)


class Dense(NamedTuple):
    """Targets with one row per prediction; the widths are those of the predictions."""

    objectness: Tensor  # (B, N): the weight of an object, 0, or -1 where ignored
    centres: Tensor  # (B, N, 2)
    scales: Tensor  # (B, N, 2)
    box_weights: Tensor  # (B, N, 2)
    classes: Tensor  # (B, N, C), -1 where there is no object


def case(batch: int, num_classes: int, *, grid: Grid) -> tuple[Predictions, Truth]:
    """Random predictions, leaves that collect gradients, and objects of all sizes."""
    rng = torch.Generator().manual_seed(0)
    n = len(grid.cells)
    raw = torch.randn(batch, n, 5 + num_classes, generator=rng)
    raw[..., 2:4] *= 0.4
    fields = (raw[..., :2], raw[..., 2:4], raw[..., 4], raw[..., 5:])
    low, high = OBJECTS
    centre = torch.rand(batch, high, 2, generator=rng) * SIDE
    half = torch.rand(batch, high, 2, generator=rng) * SIDE / 4 + 4
    count = torch.randint(low, high + 1, (batch, 1), generator=rng)
    labels = torch.randint(0, num_classes, (batch, high), generator=rng)
    labels[torch.arange(high) >= count] = -1
    boxes = torch.cat([centre - half, centre + half], -1).clamp(0, SIDE)
    boxes[labels < 0] = -1
    leaves = (field.clone().requires_grad_() for field in fields)
    return Predictions(*leaves), Truth(boxes, labels, (labels >= 0).float())


def ours(predictions: Predictions, truth: Truth, grid: Grid) -> list[Tensor]:
    """The gradients."""
    targets = assign(*truth, grid, size=(SIDE, SIDE))
    with torch.no_grad():
        decoded = decode_boxes(predictions, grid)
    ignore = ignored(decoded, truth.boxes, truth.labels)
    losses = yolo_loss(predictions, targets, ignore, grid, LossConfig())
    return list(torch.autograd.grad(losses.total, list(predictions)))


def dense(predictions: Predictions, truth: Truth, grid: Grid) -> list[Tensor]:
    """The same, by way of arrays over all predictions."""
    made = [
        dense_targets(*objects, grid, num_classes=predictions.classes.shape[-1])
        for objects in zip(*truth, strict=True)
    ]
    targets = Dense(*(torch.stack(fields) for fields in zip(*made, strict=True)))
    targets = merged(targets, predictions, truth, grid)
    return list(torch.autograd.grad(dense_loss(predictions, targets), list(predictions)))


def dense_targets(
    boxes: Tensor, labels: Tensor, weights: Tensor, grid: Grid, *, num_classes: int
) -> Dense:
    """The targets of one picture, box after box."""
    n = len(grid.cells)
    made = Dense(
        torch.zeros(n),
        torch.zeros(n, 2),
        torch.zeros(n, 2),
        torch.zeros(n, 2),
        torch.full((n, num_classes), -1.0),
    )
    anchors = torch.tensor(YOLO3_ANCHORS).flatten(0, 1)
    corners = torch.cat([-anchors / 2, anchors / 2], -1)
    cells = [rows * columns for rows, columns in grid.maps]
    for box, label, weight in zip(boxes, labels.tolist(), weights.tolist(), strict=True):
        if label < 0:
            continue
        wh = box[2:] - box[:2]
        best = int(pairwise_iou(torch.cat([-wh / 2, wh / 2])[None], corners).argmax())
        k, anchor = divmod(best, 3)
        rows, columns = grid.maps[k]
        x, y = ((box[:2] + box[2:]) / 2 / SIDE * torch.tensor([columns, rows])).tolist()
        column, row = min(int(x), columns - 1), min(int(y), rows - 1)
        at = 3 * (sum(cells[:k]) + row * columns + column) + anchor
        made.objectness[at] = weight
        made.centres[at] = torch.tensor([x - column, y - row])
        made.scales[at] = (wh.clamp(min=1) / anchors[best]).log()
        made.box_weights[at] = 2 - wh.prod() / SIDE**2
        made.classes[at] = 0.0
        made.classes[at, label] = 1.0
    return made


def merged(made: Dense, predictions: Predictions, truth: Truth, grid: Grid) -> Dense:
    """With what the predictions decide themselves: where an object overlaps, nothing is asked."""
    with torch.no_grad():
        overlap = pairwise_iou(decode_boxes(predictions, grid), truth.boxes).amax(-1)  # (B, N)
        given = made.objectness > 0
        row = given[..., None]
        return Dense(
            torch.where(given, made.objectness, -(overlap > 0.7).float()),
            torch.where(row, made.centres, 0.0),
            torch.where(row, made.scales, 0.0),
            torch.where(row, made.box_weights, 0.0),
            torch.where(row, made.classes, -1.0),
        )


def dense_loss(predictions: Predictions, targets: Dense) -> Tensor:
    """The four losses over every element, added; mean over the batch."""
    given = targets.objectness.clamp(min=0)
    positive = (targets.objectness > 0).float()
    asked = torch.where(targets.objectness > 0, given, (targets.objectness >= 0).float())
    box_weights = targets.box_weights * given[..., None]
    class_mask = (targets.classes >= 0).float() * positive[..., None]
    cross_entropy = binary_cross_entropy_with_logits
    terms = [
        cross_entropy(predictions.objectness, positive, weight=asked, reduction="sum"),
        cross_entropy(predictions.centres, targets.centres, weight=box_weights, reduction="sum"),
        (box_weights * (predictions.scales - targets.scales).abs()).sum(),
        cross_entropy(
            predictions.classes,
            targets.classes,
            weight=class_mask * given[..., None],
            reduction="sum",
        ),
    ]
    return torch.stack(terms).sum() / len(given)


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, rounds=7, peers=False)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 80])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    words = parser.parse_args()
    keep_freed_memory(torch.device("cpu"))
    grid = make_grid(YOLO3_ANCHORS, (SIDE, SIDE))
    rows: list[tuple[str | float, ...]] = []
    for num_classes in words.classes:
        predictions, truth = case(words.batch_size, num_classes, grid=grid)
        for a, b in zip(
            ours(predictions, truth, grid), dense(predictions, truth, grid), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        for threads in words.threads:
            torch.set_num_threads(threads)
            figures = in_turns(
                {
                    "dense": lambda p=predictions, t=truth: seconds(lambda: dense(p, t, grid)),
                    "ours": lambda p=predictions, t=truth: seconds(lambda: ours(p, t, grid)),
                },
                rounds=words.rounds,
            )
            medians = [1e3 * statistics.median(figures[name]) for name in ("dense", "ours")]
            rows.append((num_classes, threads, *medians, ratio(figures["dense"], figures["ours"])))
    Report(
        title=f"Targets and loss, forward and backward, batch {words.batch_size} at {SIDE}",
        columns=("classes", "threads", "dense ms", "ours ms", "times faster"),
        rows=rows,
    ).show(as_json=words.json)


if __name__ == "__main__":
    main()
