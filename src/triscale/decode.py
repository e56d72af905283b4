"""From raw predictions to detections: boxes, scores and non-maximum suppression.

Decoding is YOLOv3 (Redmon and Farhadi 2018, section 2.1). The suppression gives the reference's
result to the row, ties included, but has only static shapes and no loop over images or classes, so
that a batch of B costs little more than one picture and a GPU is never asked how much it found. On
a CPU asking is free: there all work is cut down to the predictions that can matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triscale.anchors import Grid
from triscale.boxes import box_area, clip_boxes
from triscale.detections import Detections
from triscale.errors import UserError
from triscale.pixels import Fit, placement
from triscale.types import Predictions


class Decoded(NamedTuple):
    """The detections of a batch, best first; -1 everywhere in the rows that are not used."""

    boxes: Tensor  # (B, K, 4) float32 xyxy in pixels of the network input, not clipped
    scores: Tensor  # (B, K) float32
    labels: Tensor  # (B, K) int64


MAX_TOP_K = 20_000  # the suppression compares each with each
SPARE = 32  # positions beyond `top_k` in which ties at its end are looked for
# What a position's best score may lack when it comes from its best logit: kernels for the sigmoid
# differ by an ulp or two, and none promises to be monotone.
ROUNDING = 1e-5


@dataclass(frozen=True)
class DecodeConfig:
    """The `[decode]` section; the defaults are the reference's at validation."""

    score_threshold: float = 0.01  # a score must be above it
    iou_threshold: float = 0.45  # outside (0, 1): no suppression, and all `top_k` are kept
    top_k: int = 400  # candidates per image, over all classes jointly
    keep: int = 100  # detections per image; 0: all that is left of `top_k`

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold < 1:  # the sort below needs scores that aren't negative
            raise UserError(
                f"decode.score_threshold: expected 0 <= x < 1, got {self.score_threshold}"
            )
        if not math.isfinite(self.iou_threshold):
            raise UserError(
                f"decode.iou_threshold: expected a finite number, got {self.iou_threshold}"
            )
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise UserError(f"decode.top_k: expected 1 to {MAX_TOP_K}, got {self.top_k}")

    @property
    def suppress(self) -> bool:
        return 0 < self.iou_threshold < 1

    @property
    def num_rows(self) -> int:
        return min(self.keep, self.top_k) if self.suppress and self.keep > 0 else self.top_k


def decode_boxes(predictions: Predictions, grid: Grid) -> Tensor:
    """Boxes (B, N, 4), float32 xyxy in pixels of the network input, not clipped."""
    centres, scales = _planes(predictions.centres), _planes(predictions.scales)  # (2, B, N)
    cells, strides, anchors = (_planes(f) for f in (grid.cells, grid.strides, grid.anchors))
    offsets = centres.sigmoid()
    if grid.scale_x_y != 1:
        offsets = offsets * grid.scale_x_y - (grid.scale_x_y - 1) / 2
    centres = (offsets + cells) * strides
    half = scales.exp() * anchors / 2
    return torch.cat([centres - half, centres + half]).movedim(0, -1)


def predictions_at(positions: Tensor, predictions: Predictions) -> Predictions:
    """The predictions at the positions (B, S) of N."""
    return Predictions(*(_rows(field, positions) for field in predictions))


def moderate(predictions: Predictions) -> Predictions:
    """The same with sizes of at most e^10 anchors, where a box has an IoU and a gradient at all."""
    return predictions._replace(scales=predictions.scales.clamp(max=10.0))


def grid_at(positions: Tensor, grid: Grid) -> Grid:
    """What belongs to `predictions_at` these positions: cells (B, S, 2) and so on."""
    return grid._replace(
        cells=grid.cells[positions],
        strides=grid.strides[positions],
        anchors=grid.anchors[positions],
    )


def decode_scores(predictions: Predictions) -> Tensor:
    """Scores (B, N, C), float32: the confidence that there is an object times that of the class."""
    # contiguous(): a column of the network's output would be decoded number by number.
    objectness = predictions.objectness.float().contiguous().sigmoid()
    return predictions.classes.float().sigmoid() * objectness[..., None]


def detect(predictions: Predictions, grid: Grid, config: DecodeConfig) -> Decoded:
    """The detections of a batch: `nms` of its decoded boxes and scores, without most of them.

    Nothing here needs gradients; on a GPU nothing grows with what is found.
    """
    with torch.no_grad():
        # The sigmoid rises, so the class with the best logit has the best score of its position.
        best = predictions.classes.amax(-1).float().sigmoid()
        best *= predictions.objectness.float().contiguous().sigmoid()
        positions = _shortlist(best, config)  # (B, S)
        scores = decode_scores(
            predictions._replace(
                objectness=_rows(predictions.objectness, positions),
                classes=_rows(predictions.classes, positions),
            )
        )
        cells = [rows * columns for rows, columns in grid.maps]
        num_anchors = best.shape[1] // sum(cells)
        lengths = tuple(num_anchors * n for n in cells)
        pairs = _best_pairs(scores, positions, lengths=lengths, config=config)
        positions = pairs.positions  # (B, K)
        boxes = decode_boxes(predictions_at(positions, predictions), grid_at(positions, grid))
        return _suppressed(boxes, pairs, config)


def nms(
    boxes: Tensor, scores: Tensor, *, lengths: tuple[int, ...], config: DecodeConfig
) -> Decoded:
    """Greedy suppression inside each class of the best `top_k` (position, class) pairs.

    boxes (B, N, 4), scores (B, N, C), both float32; `lengths` are the numbers of positions of each
    stride, which add up to N. Equal scores are taken in the reference's order: stride, class,
    position. NaN scores drop out. A box suppresses another of its class if their IoU is above the
    threshold.
    """
    positions = _shortlist(scores.amax(-1), config)
    pairs = _best_pairs(_rows(scores, positions), positions, lengths=lengths, config=config)
    return _suppressed(_rows(boxes, pairs.positions), pairs, config)


def detections(
    decoded: Decoded, size: tuple[int, int], *, original_sizes: Tensor, fit: Fit
) -> list[Detections]:
    """One Detections per picture, in its own pixels, cut at its borders.

    `size` is the (height, width) of the network input, `original_sizes` (B, 2) those of the
    pictures that were fitted into it.
    """
    sizes = original_sizes.cpu().numpy()
    # The one copy from the device; everything after it is a handful of rows.
    boxes, scores, labels = (field.cpu().numpy() for field in decoded)
    found: list[Detections] = []
    for i, (height, width) in enumerate(sizes.tolist()):
        used = scores[i] >= 0
        left, top, columns, rows = placement((height, width), size, fit)
        scale = np.array([width / columns, height / rows] * 2, np.float32)
        corner = np.array([left, top] * 2, np.float32)
        with np.errstate(over="ignore"):  # a network that exploded predicts the largest floats
            scaled = clip_boxes((boxes[i, used] - corner) * scale, (height, width))
        found.append(Detections(scaled, scores[i, used], labels[i, used]))
    return found


def _planes(field: Tensor) -> Tensor:
    """(B, N, 2) or (N, 2) -> (2, B, N) or (2, 1, N), float32.

    One coordinate after the other, because a vector instruction wants more neighbours than two.
    float32, because under autocast the logits are half precision, which near 400 px is 0.25 px.
    """
    planes = torch.stack(field.float().unbind(-1))
    return planes if planes.ndim == 3 else planes[:, None]


class _Pairs(NamedTuple):
    """The best (position, class) pairs of each picture, best first."""

    positions: Tensor  # (B, K) int64 index into N
    labels: Tensor  # (B, K) int64
    scores: Tensor  # (B, K) float32
    alive: Tensor  # (B, K) bool: the score is above the threshold


def _shortlist(best: Tensor, config: DecodeConfig) -> Tensor:
    """The positions (B, S), in no order, that hold the best `top_k` pairs, by best scores (B, N).

    Of N * C pairs the best K lie in the K positions whose own best pairs are best: a pair in any
    other position has K better ones before it. Positions that tie with the K-th are listed too;
    those without a score above the threshold needn't be.
    """
    batch, n = best.shape
    everything = torch.arange(n, device=best.device).expand(batch, n)
    if best.device.type != "cpu":
        return everything  # to ask how long the list must be is to wait for the device
    values, positions = best.topk(min(config.top_k + SPARE, n))
    least = values.new_full((batch, 1), config.score_threshold)
    if n > config.top_k:
        least = least.maximum(values[:, config.top_k - 1, None])
    # Below 1e-37 floats lose digits, and no relative margin holds.
    listed = _used(values >= least * (1 - ROUNDING) - 1e-37)
    # NaN is a position's best as soon as one of its classes has it, and sorts before all numbers.
    if listed == values.shape[1] or bool(values[:, :1].isnan().any()):
        return everything
    return positions[:, :listed]


def _best_pairs(
    scores: Tensor, positions: Tensor, *, lengths: tuple[int, ...], config: DecodeConfig
) -> _Pairs:
    """The best `top_k` of the scores (B, S, C) of the positions (B, S), ties in the right order."""
    num_classes = scores.shape[2]
    # A position's rank for class 0, and what each further class adds to it.
    first, step = _reference_order(lengths, num_classes, device=scores.device)
    scores = scores.nan_to_num(nan=-1.0)
    if positions.shape[1] > config.top_k:
        best, label = scores.max(-1)  # of equal classes the first, which is also first in order
        key = _sort_key(best, first[positions] + label * step[positions])
        column = key.topk(config.top_k).indices
        positions, scores = positions.gather(1, column), _rows(scores, column)
    classes = torch.arange(num_classes, device=scores.device)
    rank = first[positions][..., None] + step[positions][..., None] * classes  # (B, P, C)
    key = _sort_key(scores, rank).flatten(1)
    pair = key.topk(min(config.top_k, key.shape[1])).indices  # (B, K)
    scores = scores.flatten(1).gather(1, pair)
    alive = scores > config.score_threshold
    positions = positions.gather(1, pair // num_classes)
    used = _used(alive)
    fields = (positions, pair % num_classes, scores, alive)
    return _Pairs(*(field[:, :used] for field in fields))


def _suppressed(boxes: Tensor, pairs: _Pairs, config: DecodeConfig) -> Decoded:
    """What is left of the pairs and their boxes (B, K, 4)."""
    alive = pairs.alive
    if config.suppress:
        alive = _suppress(boxes, pairs.labels, alive, iou_threshold=config.iou_threshold)
    return _compact(boxes, pairs.scores, pairs.labels, alive, num_rows=config.num_rows)


def _used(wanted: Tensor) -> int:
    """How many columns of (B, K), whose wanted ones come first, are wanted; on a GPU all of them.

    There the answer would have to be waited for.
    """
    return int(wanted.any(0).sum()) if wanted.device.type == "cpu" else wanted.shape[1]


def _rows(field: Tensor, positions: Tensor) -> Tensor:
    """The rows (B, S, ...) of a field (B, N, ...) at the positions (B, S)."""
    index = positions.reshape(*positions.shape, *[1] * (field.ndim - 2))
    return field.gather(1, index.expand(-1, -1, *field.shape[2:]))


def _reference_order(
    lengths: tuple[int, ...], num_classes: int, *, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(N,), (N,): pair (n, c) comes at first[n] + c * step[n] in the reference's flat order.

    gluoncv: it lays a stride's pairs out class by class before it joins the strides.
    """
    starts = np.cumsum([0, *lengths]).tolist()
    first = [
        torch.arange(end - start, device=device) + start * num_classes
        for start, end in pairwise(starts)
    ]
    step = [torch.full((length,), length, device=device) for length in lengths]
    return torch.cat(first), torch.cat(step)


def _sort_key(scores: Tensor, rank: Tensor) -> Tensor:
    """int64 keys that fall with the score, then with the rank: no two equal, so any sort is stable.

    The bits of positive floats, read as integers, rise with the floats; -1 gives a negative key.
    """
    return scores.view(torch.int32).long() << 32 | (0xFFFFFFFF - rank)


def _suppress(boxes: Tensor, labels: Tensor, alive: Tensor, *, iou_threshold: float) -> Tensor:
    """Which of the boxes (B, K, 4), best first, survive; labels (B, K), alive (B, K) -> (B, K)."""
    beats = _beats(boxes, labels, iou_threshold=iou_threshold)
    # The greedy rule "j survives if no survivor beats it" has one solution, because only better
    # boxes beat: after r rounds of applying it at least the first r boxes are right. Real pictures
    # settle in a few rounds. Asking whether they did is a device sync, the only one here.
    survives = alive
    for _ in range(boxes.shape[1]):
        before = survives
        beaten = torch.bmm(before[:, None, :].float(), beats)[:, 0] > 0  # (B, K)
        survives = alive & ~beaten
        if torch.equal(survives, before):
            break
    return survives


def _beats(boxes: Tensor, labels: Tensor, *, iou_threshold: float) -> Tensor:
    """(B, K, K) float: 1 where box i suppresses box j, if it survives; i is better than j.

    `pairwise_iou` to the bit, in a quarter of its time: in place, one coordinate after the other,
    and in floats, because a comparison in place is five times as fast as one that makes bools.
    """
    left, top, right, bottom = boxes.movedim(-1, 0).contiguous()  # (B, K) each
    inter = _shared(left, right).mul_(_shared(top, bottom))  # (B, K, K)
    areas, labels = box_area(boxes), labels.float()
    union = (areas[:, :, None] + areas[:, None]).sub_(inter).add_(1e-15)
    same = (labels[:, :, None] - labels[:, None]).eq_(0)
    return inter.div_(union).gt_(iou_threshold).mul_(same).triu_(1)


def _shared(low: Tensor, high: Tensor) -> Tensor:
    """The lengths (B, K, K) that intervals from `low` (B, K) to `high` share, each with each."""
    length = torch.minimum(high[:, :, None], high[:, None])
    return length.sub_(torch.maximum(low[:, :, None], low[:, None])).clamp_(min=0)


def _compact(
    boxes: Tensor, scores: Tensor, labels: Tensor, alive: Tensor, *, num_rows: int
) -> Decoded:
    """The first `num_rows` alive rows moved to the front, in order; the rest -1."""
    batch = len(scores)
    # Each row's place; what is not wanted goes to one row too many, which is cut off.
    place = torch.where(alive, alive.cumsum(1) - 1, num_rows).clamp(max=num_rows)
    return Decoded(
        boxes.new_full((batch, num_rows + 1, 4), -1).scatter(
            1, place[..., None].expand(-1, -1, 4), boxes
        )[:, :num_rows],
        scores.new_full((batch, num_rows + 1), -1).scatter(1, place, scores)[:, :num_rows],
        labels.new_full((batch, num_rows + 1), -1).scatter(1, place, labels)[:, :num_rows],
    )
