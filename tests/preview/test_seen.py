"""A preview against training itself: the same batches to the bit, the same targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from triscale import step, training
from triscale.assign import assign
from triscale.data.loader import load
from triscale.data.open import Data
from triscale.errors import UserError
from triscale.log import Narrator
from triscale.model.yolo import build_model
from triscale.preview.seen import Seen, first_batches, look_at, seen_in_training
from triscale.recipe import Recipe
from triscale.types import Batch, Draw, Targets

MIXED = ("augment.mixup=true", "augment.mixup_off_epochs=0")
SHAPES = ("augment.random_shape=true", "augment.shape_min=64", "augment.shape_max=96")
MOSAIC = ("augment.mosaic=0.5", "augment.mosaic_off_epochs=0", "augment.fast_resize=true")
FREE = ("model.scale_x_y=2", "assign.ratio=4", "assign.neighbours=true")


def network(recipe: Recipe, data: Data) -> Any:
    """A network for the recipe, of strong opinions: a new one says nearly the same of all."""
    seeded = torch.Generator().manual_seed(recipe.train.seed)
    model = build_model(recipe.model, len(data.classes), generator=seeded)
    with torch.no_grad():
        for layer in model.head.outputs:
            layer.weight *= 300
    return model


def trained(
    recipe: Recipe, data: Data, run: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Batch, Targets]]:
    """What each step of a run is given, and what it makes of it."""
    batches: list[Batch] = []
    targets: list[Targets] = []

    def losses(model: Any, batch: Batch, *rest: Any, **named: Any) -> Any:
        batches.append(Batch(*(field.clone() for field in batch)))
        return step.batch_losses(model, batch, *rest, **named)

    def told(*arguments: Any, **named: Any) -> Targets:
        targets.append(assign(*arguments, **named))
        return targets[-1]

    monkeypatch.setattr(training, "batch_losses", losses)
    monkeypatch.setattr(training, "try_largest", lambda *arguments: None)
    monkeypatch.setattr(step, "assign", told)
    silent = Narrator(enabled=False)
    training.train(recipe, data, run, model=network(recipe, data), narrator=silent)
    return list(zip(batches, targets, strict=True))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        MIXED,
        SHAPES,
        MOSAIC,
        FREE,
        (*FREE, "assign.dynamic=3", "model.init=kaiming"),
        ("train.workers=1",),
    ],
    ids=["plain", "mixup", "shapes", "mosaic", "free", "dynamic", "worker"],
)
def test_it_is_what_training_sees(
    overrides: tuple[str, ...],
    data: Data,
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tiny_recipe("train.save_interval=0", "train.val_interval=0", *overrides)
    assert data.train
    steps = trained(recipe, data, tmp_path / "run", monkeypatch)
    assert len(steps) == 7  # 3 epochs of 10 pictures by 4: steps 0, 2 and 5 begin one
    for epoch, first in ((0, 0), (1, 2), (2, 5)):
        found = list(first_batches(recipe, data.train, epoch=epoch))
        assert [number for number, _, _ in found] == list(range(first, 7))
        for number, draws, batch in found:
            assert [d.index for d in draws] == batch.image_ids.tolist()
            for ours, theirs in zip(batch, steps[number][0], strict=True):
                assert ours.dtype == theirs.dtype
                assert torch.equal(ours, theirs)
    # the first step's network is the one that training begins with
    samples = list(seen_in_training(recipe, data.train, network(recipe, data), epoch=0, count=4))
    targets = steps[0][1]
    per_object = targets.weight.shape[1] // steps[0][0].labels.shape[1]
    for i, seen in enumerate(samples):
        rows = (targets.weight[i] > 0).nonzero()[:, 0]
        won = seen.pairs.won
        assert seen.pairs.objects[won].tolist() == (rows // per_object).tolist()
        # centre and size of the target, back from cell and anchor, are the object's
        box = seen.boxes[seen.pairs.objects[won]]
        scale = np.log((box[:, 2:] - box[:, :2]).clip(1) / seen.pairs.anchors[won])
        np.testing.assert_allclose(scale, targets.scale[i, rows], atol=1e-4)
        at = (box[:, :2] + box[:, 2:]) / 2 / seen.pairs.strides[won, None]
        wide = recipe.model.scale_x_y
        centre = (at - seen.pairs.cells[won] + (wide - 1) / 2) / wide
        np.testing.assert_allclose(centre, targets.centre[i, rows], atol=1e-4)


def made(boxes: list[tuple[float, ...]], weights: list[float] | None = None) -> Batch:
    """A grey picture of 96 x 64 pixels with these boxes."""
    number = len(boxes)
    return Batch(
        images=torch.full((1, 64, 96, 3), 100, dtype=torch.uint8),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(1, number, 4),
        labels=torch.zeros(1, number, dtype=torch.int64),
        weights=torch.tensor([weights or [1.0] * number]),
        image_ids=torch.zeros(1, dtype=torch.int64),
        original_sizes=torch.tensor([[64, 96]]),
        colour=torch.eye(3, 4)[None],
        rectangle=torch.tensor([[0.0, 0.0, 96.0, 64.0]]),
    )


def look(batch: Batch, data: Data, recipe: Recipe) -> Seen:
    assert data.train
    draws = [Draw(0, (64, 96), 0)]
    model = network(recipe, data)
    (seen,) = look_at(recipe, data.train, model, step=0, draws=draws, batch=batch)
    return seen


@pytest.mark.parametrize(
    ("boxes", "strides", "cells", "lost"),
    [
        ([], [], [], []),
        # Darknet's anchors of yolov3-tiny: 81x82 at stride 32; 10x14, 23x27 and 37x58 at 16
        ([(0, 0, 96, 64)], [32], [(1, 1)], [False]),
        ([(30, 30, 53, 57)], [16], [(2, 2)], [False]),  # the centre is at 41.5, 43.5
        # twice the same: the later one gets the cell
        ([(30, 30, 53, 57)] * 2, [16, 16], [(2, 2)] * 2, [True, False]),
        # another anchor in the same cell, and the next cell
        ([(30, 30, 53, 57), (37, 37, 47, 51)], [16, 16], [(2, 2)] * 2, [False] * 2),
        ([(30, 30, 53, 57), (37, 30, 60, 57)], [16, 16], [(2, 2), (3, 2)], [False] * 2),
    ],
)
def test_cells_by_hand(
    boxes: list[tuple[float, ...]],
    strides: list[int],
    cells: list[tuple[int, int]],
    lost: list[bool],
    data: Data,
    tiny_recipe: Callable[..., Recipe],
) -> None:
    seen = look(made(boxes), data, tiny_recipe("model.backbone=tiny"))
    assert seen.strides.tolist() == strides
    assert [tuple(cell) for cell in seen.pairs.cells.tolist()] == cells
    assert seen.lost.tolist() == lost
    assert seen.pairs.first.all()
    assert data.train
    assert seen.cut_off == len(data.train.labels[data.train.objects(0)]) - len(boxes)


def test_weights_of_a_mixup(data: Data, tiny_recipe: Callable[..., Recipe]) -> None:
    batch = made([(30, 30, 53, 57), (0, 0, 20, 20)], [0.62, 0.38])
    seen = look(batch, data, tiny_recipe("model.backbone=tiny"))
    assert seen.weights.tolist() == pytest.approx([0.62, 0.38])
    assert not seen.lost.any()


@pytest.mark.parametrize("normalise", ["imagenet", "unit"])
def test_colours_are_those_of_the_device(
    normalise: str, data: Data, tiny_recipe: Callable[..., Recipe]
) -> None:
    """By hand: 1.5 times 100 and 10 more, in the rectangle; far beyond white it is white."""
    recipe = tiny_recipe(f"input.normalise={normalise}")
    batch = made([])
    matrix = torch.cat([1.5 * torch.eye(3), torch.tensor([[10.0], [10.0], [500.0]])], 1)[None]
    seen = look(batch._replace(colour=matrix), data, recipe)
    assert (seen.image == [160, 160, 255]).all()
    half = batch._replace(colour=matrix, rectangle=torch.tensor([[0.0, 0.0, 48.0, 64.0]]))
    seen = look(half, data, recipe)
    assert (seen.image[:, :48] == [160, 160, 255]).all()
    assert (seen.image[:, 48:] == [124, 116, 104]).all(), "ImageNet's mean"
    assert seen.filled == pytest.approx(0.5)


def test_without_augmentation_it_is_the_picture(
    data: Data, tiny_recipe: Callable[..., Recipe]
) -> None:
    off = ("colour=0.0", "expand=0.0", "flip=0.0", "crop=false", "random_shape=false")
    words = [f"augment.{word}" for word in off]
    # the pictures are 128 x 96
    recipe = tiny_recipe(*words, "augment.interpolations=['nearest']", "train.size=384")
    assert data.train
    model = network(recipe, data)
    (seen,) = seen_in_training(recipe, data.train, model, epoch=0, count=1)
    picture = load(data.train, seen.draw.index)
    assert np.array_equal(seen.image, picture.image.repeat(4, 0).repeat(3, 1))
    np.testing.assert_allclose(seen.boxes, picture.boxes * [3, 4, 3, 4], atol=1e-3)
    assert (seen.cut_off, seen.filled, seen.size) == (0, 0, (384, 384))


@pytest.mark.parametrize(
    ("epoch", "count", "message"),
    [
        (0, 0, "--count: expected at least 1, got 0"),
        (-1, 1, "--epoch: expected 0 to 2, as the run has 3 epochs, got -1"),
        (3, 1, "--epoch: expected 0 to 2, as the run has 3 epochs, got 3"),
    ],
)
def test_wrong_wishes(
    epoch: int, count: int, message: str, data: Data, tiny_recipe: Callable[..., Recipe]
) -> None:
    recipe = tiny_recipe()
    assert data.train
    with pytest.raises(UserError, match=message):
        list(seen_in_training(recipe, data.train, network(recipe, data), epoch=epoch, count=count))


@pytest.mark.parametrize(("count", "found"), [(1, 1), (5, 5), (99, 8)])
def test_as_many_as_there_are(
    count: int, found: int, data: Data, tiny_recipe: Callable[..., Recipe]
) -> None:
    recipe = tiny_recipe()
    assert data.train
    model = network(recipe, data)
    seen = list(seen_in_training(recipe, data.train, model, epoch=2, count=count))
    assert len(seen) == found  # steps 5 and 6
