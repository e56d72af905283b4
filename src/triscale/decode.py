"""From raw predictions to detections: boxes, scores and non-maximum suppression.

Decoding is YOLOv3 (Redmon and Farhadi 2018, section 2.1). The suppression gives the reference's
result to the row, ties included, but has only static shapes and no loop over images or classes, so
that a batch of B costs little more than one picture and a GPU is never asked how much it found.
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
from triscale.boxes import clip_boxes, pairwise_iou
from triscale.errors import UserError
from triscale.pixels import Fit, placement
from triscale.types import Detections, Predictions


class Decoded(NamedTuple):
    """The detections of a batch, best first; -1 everywhere in the rows that are not used."""

    boxes: Tensor  # (B, K, 4) float32 xyxy in pixels of the network input, not clipped
    scores: Tensor  # (B, K) float32
    labels: Tensor  # (B, K) int64


MAX_TOP_K = 20_000  # the suppression compares each with each


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
    # float(): under autocast the logits are half precision, and a half near 400 px is 0.25 px wide.
    centres = (predictions.centres.float().sigmoid() + grid.cells) * grid.strides
    half = predictions.scales.float().exp() * grid.anchors / 2
    return torch.cat([centres - half, centres + half], -1)


def decode_scores(predictions: Predictions) -> Tensor:
    """Scores (B, N, C), float32: the confidence that there is an object times that of the class."""
    objectness = predictions.objectness.float().sigmoid()
    return predictions.classes.float().sigmoid() * objectness[..., None]


def detect(predictions: Predictions, grid: Grid, config: DecodeConfig) -> Decoded:
    """The detections of a batch; nothing here needs gradients or grows with what is found."""
    with torch.no_grad():
        boxes, scores = decode_boxes(predictions, grid), decode_scores(predictions)
        cells = [rows * columns for rows, columns in grid.maps]
        num_anchors = boxes.shape[1] // sum(cells)
        return nms(boxes, scores, lengths=tuple(num_anchors * n for n in cells), config=config)


def nms(
    boxes: Tensor, scores: Tensor, *, lengths: tuple[int, ...], config: DecodeConfig
) -> Decoded:
    """Greedy suppression inside each class of the best `top_k` (position, class) pairs.

    boxes (B, N, 4), scores (B, N, C), both float32; `lengths` are the numbers of positions of each
    stride, which add up to N. Equal scores are taken in the reference's order: stride, class,
    position. NaN scores drop out. A box suppresses another of its class if their IoU is above the
    threshold.
    """
    num_classes = scores.shape[2]
    # A position's rank for class 0, and what each further class adds to it.
    first, step = _reference_order(lengths, num_classes, device=scores.device)
    scores = scores.nan_to_num(nan=-1.0)

    # Of N * C pairs the best K lie in the K positions whose own best pairs are best: a pair in
    # any other position has K better ones before it. So the large sort is over N, not N * C.
    best, label = scores.max(-1)  # of equal classes the first, which is also the first in order
    key = _sort_key(best, first + label * step)
    position = key.topk(min(config.top_k, key.shape[1])).indices  # (B, P)
    index = position[..., None].expand(-1, -1, num_classes)  # (B, P, C)
    rank = first[position][..., None] + step[position][..., None] * _classes(scores)
    key = _sort_key(scores.gather(1, index), rank).flatten(1)  # (B, P * C)
    pair = key.topk(min(config.top_k, key.shape[1])).indices  # (B, K)

    labels = pair % num_classes
    position = position.gather(1, pair // num_classes)  # (B, K)
    boxes = boxes.gather(1, position[..., None].expand(-1, -1, 4))  # (B, K, 4)
    scores = scores.flatten(1).gather(1, position * num_classes + labels)  # (B, K)
    alive = scores > config.score_threshold
    if config.suppress:
        alive = _suppress(boxes, labels, alive, iou_threshold=config.iou_threshold)
    return _compact(boxes, scores, labels, alive, num_rows=config.num_rows)


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


def _classes(scores: Tensor) -> Tensor:
    return torch.arange(scores.shape[-1], device=scores.device)


def _sort_key(scores: Tensor, rank: Tensor) -> Tensor:
    """int64 keys that fall with the score, then with the rank: no two equal, so any sort is stable.

    The bits of positive floats, read as integers, rise with the floats; -1 gives a negative key.
    """
    return scores.view(torch.int32).long() << 32 | (0xFFFFFFFF - rank)


def _suppress(boxes: Tensor, labels: Tensor, alive: Tensor, *, iou_threshold: float) -> Tensor:
    """Which of the boxes (B, K, 4), best first, survive; labels (B, K), alive (B, K) -> (B, K)."""
    same = labels[:, :, None] == labels[:, None, :]
    beats = ((pairwise_iou(boxes, boxes) > iou_threshold) & same).triu(1)  # (B, K, K): i beats j
    weights = beats.float()  # a product of matrices is ten times faster than `any`
    # The greedy rule "j survives if no survivor beats it" has one solution, because only better
    # boxes beat: after r rounds of applying it at least the first r boxes are right. Real pictures
    # settle in a few rounds. Asking whether they did is a device sync, the only one here.
    survives = alive
    for _ in range(boxes.shape[1]):
        before = survives
        beaten = torch.bmm(before[:, None, :].float(), weights)[:, 0] > 0  # (B, K)
        survives = alive & ~beaten
        if torch.equal(survives, before):
            break
    return survives


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
