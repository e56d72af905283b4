"""Targets and loss the dense way, as a check on `triscale.assign` and `triscale.loss`.

Every prediction has its own target row and the boxes are entered one by one, in plain loops;
nothing is shared with the package except the types. Slow and simple on purpose.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triscale.types import Predictions, Targets


class Dense(NamedTuple):
    """One row per prediction."""

    objectness: NDArray[np.float32]  # (N,) 0, or the mixup ratio of the object
    centre: NDArray[np.float32]  # (N, 2)
    scale: NDArray[np.float32]  # (N, 2)
    box_weight: NDArray[np.float32]  # (N,)
    label: NDArray[np.int64]  # (N,) -1 where there is no object


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Intersection over union of two xyxy boxes (4,)."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / (union + 1e-15)


def dense_targets(
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    size: tuple[int, int],
    anchors: tuple[tuple[tuple[float, float], ...], ...],
) -> Dense:
    """Targets of one image, box after box: a later one overwrites an earlier one."""
    height, width = size
    maps = [(math.ceil(height / s), math.ceil(width / s)) for s in (32, 16, 8)]
    n = sum(rows * columns * len(a) for (rows, columns), a in zip(maps, anchors, strict=True))
    objectness = np.zeros(n, np.float32)
    centre, scale = np.zeros((n, 2), np.float32), np.zeros((n, 2), np.float32)
    box_weight, label = np.zeros(n, np.float32), np.full(n, -1)
    for box, cls, ratio in zip(boxes, labels, weights, strict=True):
        if cls < 0:
            continue
        w, h = box[2] - box[0], box[3] - box[1]
        own = np.array([-w / 2, -h / 2, w / 2, h / 2])
        best, best_iou = (0, 0), -1.0
        for k, level in enumerate(anchors):
            for a, (aw, ah) in enumerate(level):
                overlap = iou(own, np.array([-aw / 2, -ah / 2, aw / 2, ah / 2]))
                if overlap > best_iou:
                    best, best_iou = (k, a), overlap
        level, a = best
        rows, columns = maps[level]
        x = (box[0] + box[2]) / 2 / width * columns
        y = (box[1] + box[3]) / 2 / height * rows
        column = min(max(math.floor(x), 0), columns - 1)
        row = min(max(math.floor(y), 0), rows - 1)
        before = sum(r * c * len(anchors[i]) for i, (r, c) in enumerate(maps[:level]))
        slot = before + (row * columns + column) * len(anchors[level]) + a
        objectness[slot] = ratio
        centre[slot] = min(max(x - column, 0), 1), min(max(y - row, 0), 1)
        aw, ah = anchors[level][a]
        scale[slot] = math.log(max(w, 1) / aw), math.log(max(h, 1) / ah)
        box_weight[slot] = 2 - w * h / (width * height)
        label[slot] = cls
    return Dense(objectness, centre, scale, box_weight, label)


def no_objects(n: int) -> Dense:
    """What every prediction has that no object belongs to."""
    pair, zero = np.zeros((n, 2), np.float32), np.zeros(n, np.float32)
    return Dense(zero, pair, pair.copy(), zero.copy(), np.full(n, -1))


def to_dense(targets: Targets, image: int, n: int) -> Dense:
    """The slots written out as one row per prediction; two winners on one row are a mistake."""
    dense = no_objects(n)
    for m in range(targets.slot.shape[1]):
        if targets.weight[image, m] > 0:
            slot = int(targets.slot[image, m])
            assert dense.objectness[slot] == 0, f"two objects at {slot}"
            dense.objectness[slot] = targets.weight[image, m]
            dense.centre[slot] = targets.centre[image, m]
            dense.scale[slot] = targets.scale[image, m]
            dense.box_weight[slot] = targets.box_weight[image, m]
            dense.label[slot] = targets.label[image, m]
    return dense


def assert_same(ours: Dense, theirs: Dense) -> None:
    """Equal wherever the objectness is above 0; elsewhere nothing else is used."""
    used = theirs.objectness > 0
    np.testing.assert_allclose(ours.objectness, theirs.objectness, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours.label[used], theirs.label[used])
    for field in ("centre", "scale", "box_weight"):
        a, b = getattr(ours, field), getattr(theirs, field)
        np.testing.assert_allclose(a[used], b[used], rtol=0, atol=1e-5, err_msg=field)


def dense_ignored(
    pred_boxes: NDArray[np.float64], boxes: NDArray[np.float64], *, threshold: float
) -> NDArray[np.bool_]:
    """(N,) whether a prediction overlaps one of the (unpadded) boxes better than `threshold`."""
    return np.array([any(iou(pred, box) > threshold for box in boxes) for pred in pred_boxes])


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Element-wise binary cross-entropy, written out."""
    return logits.clamp(min=0) - logits * target + torch.log1p(torch.exp(-logits.abs()))


def dense_loss(
    predictions: Predictions, targets: list[Dense], ignore: NDArray[np.bool_], *, smooth: bool
) -> list[Tensor]:
    """[objectness, centre, scale, classes], each (B,): one sum per image over all N rows."""
    losses: list[list[Tensor]] = [[], [], [], []]
    num_classes = predictions.classes.shape[-1]
    s = min(1 / num_classes, 1 / 40) if smooth else 0.0
    for b, dense in enumerate(targets):
        given = torch.from_numpy(dense.objectness)
        positive = given > 0
        weight = torch.where(positive, given, 1.0 - torch.from_numpy(ignore[b]).float())
        entropy = cross_entropy(predictions.objectness[b], positive.float())
        losses[0].append((weight * entropy).sum())
        box_weight = (torch.from_numpy(dense.box_weight) * given)[:, None]
        entropy = cross_entropy(predictions.centres[b], torch.from_numpy(dense.centre))
        losses[1].append((box_weight * entropy).sum())
        distance = (predictions.scales[b] - torch.from_numpy(dense.scale)).abs()
        losses[2].append((box_weight * distance).sum())
        wanted = torch.full((len(given), num_classes), s)
        for row in np.flatnonzero(dense.objectness > 0):
            wanted[row, dense.label[row]] = 1 - s
        entropy = cross_entropy(predictions.classes[b], wanted)
        losses[3].append((given[:, None] * entropy).sum())
    return [torch.stack(term) for term in losses]
