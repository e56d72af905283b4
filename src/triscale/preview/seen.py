"""What the network will see: the samples of an epoch, and what each object is given to.

Nothing is imitated here. The plan, the loader, the colour step and the targets are those of the
training loop, called in its order; this file only keeps what they say, picture by picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triscale.anchors import Grid
from triscale.assign import assign, claims
from triscale.candidates import FIRST
from triscale.data.index import Index
from triscale.data.loader import make_loader
from triscale.data.plan import PlanSampler
from triscale.distributed import Processes
from triscale.errors import UserError
from triscale.kmeans import shape_iou
from triscale.model.yolo import YOLOv3
from triscale.normalise import network_input
from triscale.pixels import NORMALISATIONS
from triscale.recipe import Recipe
from triscale.training import make_plan
from triscale.types import Batch, Draw, Predictions


class Pairs(NamedTuple):
    """The P pairs of an object and a prediction that the objects of one picture ask for."""

    objects: NDArray[np.int64]  # (P,)
    strides: NDArray[np.int64]  # (P,) pixels per cell
    cells: NDArray[np.int64]  # (P, 2) column, row
    anchors: NDArray[np.float64]  # (P, 2) w, h in pixels
    first: NDArray[np.bool_]  # (P,) the one that an object gives up last; it has one
    won: NDArray[np.bool_]  # (P,) False: another object has the prediction


class Seen(NamedTuple):
    """A sample with n objects as training sees it."""

    step: int
    draw: Draw
    size: tuple[int, int]  # height, width of the network input
    image: NDArray[np.uint8]  # (H, W, 3) RGB; what the colours push beyond 0..255 is cut off
    boxes: NDArray[np.float32]  # (n, 4) xyxy pixels of `image`
    labels: NDArray[np.int64]  # (n,)
    weights: NDArray[np.float32]  # (n,) of mixup
    overlaps: NDArray[np.float64]  # (n,) IoU with the anchor of the nearest shape
    pairs: Pairs
    cut_off: int  # objects of its pictures that it no longer has
    rows: int  # of its batch's labels, of which n are used
    filled: float  # part of the input that no picture covers

    @property
    def strides(self) -> NDArray[np.int64]:
        """(n,) the stride of each object's first pair."""
        found = np.zeros(len(self.labels), np.int64)
        found[self.pairs.objects[self.pairs.first]] = self.pairs.strides[self.pairs.first]
        return found

    @property
    def lost(self) -> NDArray[np.bool_]:
        """(n,) whether an object has no prediction at all: others have those that it wants."""
        kept = np.zeros(len(self.labels), np.bool_)
        kept[self.pairs.objects[self.pairs.won]] = True
        return ~kept


def first_batches(
    recipe: Recipe, index: Index, *, epoch: int
) -> Iterator[tuple[int, Sequence[Draw], Batch]]:
    """The steps of training from the beginning of an epoch: number, draws and batch of each."""
    if not 0 <= epoch < recipe.train.epochs:
        raise UserError(
            f"--epoch: expected 0 to {recipe.train.epochs - 1}, as the run has "
            f"{recipe.train.epochs} epochs, got {epoch}"
        )
    plan = make_plan(recipe, index, Processes())
    steps = range(plan.first_step(epoch), plan.steps)
    batches = make_loader(
        index,
        PlanSampler(plan, start=steps.start, stop=steps.stop),
        config=recipe.augment,
        workers=recipe.train.workers,
    )
    for step, batch in zip(steps, batches, strict=False):
        yield step, plan.draws(step), batch


def seen_in_training(
    recipe: Recipe, index: Index, model: YOLOv3, *, epoch: int, count: int
) -> Iterator[Seen]:
    """The first `count` samples of an epoch; those of the whole run's rest if they are fewer.

    With `assign.dynamic` the objects' predictions depend on what `model` says.
    """
    if count < 1:
        raise UserError(f"--count: expected at least 1, got {count}")
    left = count
    for step, draws, batch in first_batches(recipe, index, epoch=epoch):
        samples = look_at(recipe, index, model, step=step, draws=draws, batch=batch)
        yield from samples[:left]
        left -= len(samples)
        if left <= 0:
            return


def look_at(
    recipe: Recipe,
    index: Index,
    model: YOLOv3,
    *,
    step: int,
    draws: Sequence[Draw],
    batch: Batch,
) -> list[Seen]:
    """What a step makes of its batch, as `batch_losses` does."""
    size = batch.images.shape[1], batch.images.shape[2]
    grid, config = model.grid(size), recipe.assign
    # crops are stretched, whatever happens to whole pictures
    inputs = network_input(batch, replace(recipe.input, fit="stretch"))
    predictions = _predict(model, inputs, recipe) if config.dynamic else None
    found = claims(
        batch.boxes, batch.labels, grid, size=size, config=config, predictions=predictions
    )
    targets = assign(
        *(batch.boxes, batch.labels, batch.weights, grid),
        size=size,
        config=config,
        predictions=predictions,
    )
    won = targets.weight.view(found.slot.shape) > 0
    images = shown(inputs, recipe)
    samples: list[Seen] = []
    for i, draw in enumerate(draws):
        real = (batch.labels[i] >= 0).numpy()
        boxes = batch.boxes[i].numpy()[real]
        anchors = grid.kinds.anchors.numpy()
        before = sum(len(index.labels[index.objects(k)]) for k in pictures_of(draw))
        x1, y1, x2, y2 = batch.rectangle[i].tolist()
        samples.append(
            Seen(
                step,
                draw,
                size,
                images[i],
                boxes,
                batch.labels[i].numpy()[real],
                batch.weights[i].numpy()[real],
                shape_iou((boxes[:, 2:] - boxes[:, :2]).astype(np.float64), anchors).max(1),
                _pairs(found.slot[i], found.active[i], found.rank[i], won[i], grid),
                cut_off=before - int(real.sum()),
                rows=len(real),
                filled=1 - (x2 - x1) * (y2 - y1) / (size[0] * size[1]),
            )
        )
    return samples


def pictures_of(draw: Draw) -> list[int]:
    """The images of the index that a sample shows."""
    return [draw.index, *draw.tiles, *([] if draw.partner is None else [draw.partner])]


def shown(inputs: Tensor, recipe: Recipe) -> NDArray[np.uint8]:
    """Network input (B, 3, H, W) as pictures (B, H, W, 3) for the eye."""
    mean, std = (torch.tensor(v) for v in NORMALISATIONS[recipe.input.normalise])
    pixels = (inputs.permute(0, 2, 3, 1) * std + mean) * 255
    return pixels.round().clamp(0, 255).to(torch.uint8).numpy()


@torch.no_grad()
def _predict(model: YOLOv3, inputs: Tensor, recipe: Recipe) -> Predictions:
    """What the network says while it trains, in the parts in which a batch goes through it."""
    parts = min(recipe.train.accumulate, len(inputs))
    said = [model.train()(part) for part in inputs.tensor_split(parts)]
    return Predictions(*(torch.cat(fields) for fields in zip(*said, strict=True)))


def _pairs(slot: Tensor, active: Tensor, rank: Tensor, won: Tensor, grid: Grid) -> Pairs:
    """The active ones of (M, K) pairs; padding has none and follows the objects."""
    slots = slot[active]
    return Pairs(
        active.nonzero()[:, 0].numpy(),
        grid.strides[slots, 0].long().numpy(),
        grid.cells[slots].long().numpy(),
        grid.anchors[slots].double().numpy(),
        (rank[active] == FIRST).numpy(),
        won[active].numpy(),
    )
