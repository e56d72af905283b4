"""Epochs for a time: the arithmetic against a search, the measurement on the drawn set."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.running import MakeRecipe
from triscale import budget
from triscale.budget import Speed, fit_minutes, middle_size, most_epochs, smaller_size
from triscale.data.open import Data
from triscale.errors import UserError
from triscale.model.yolo import YOLOv3, build_model
from triscale.recipe import Recipe


@pytest.fixture
def model(data: Data, tiny_recipe: MakeRecipe) -> YOLOv3:
    seeded = torch.Generator().manual_seed(0)
    return build_model(tiny_recipe().model, len(data.classes), generator=seeded)


Fit = Callable[..., tuple[Recipe, list[str]]]


@pytest.fixture
def fit(data: Data, model: YOLOv3, tiny_recipe: MakeRecipe, tmp_path: Path) -> Fit:
    """`fit_minutes` for the tiny recipe with overrides; 7 s are gone already."""

    def fit(minutes: float, *overrides: str, **words: Any) -> tuple[Recipe, list[str]]:
        recipe, folder = tiny_recipe("schedule.warmup_epochs=1", *overrides), tmp_path / "run"
        words = {"spent": 7.0, "folder": folder, **words}
        return fit_minutes(recipe, data, model, minutes=minutes, **words)

    return fit


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that are soon over."""
    for name in ("_TRAINING_SECONDS", "_VALIDATION_SECONDS", "_WARM_SECONDS"):
        monkeypatch.setattr(budget, name, 0.1)


def due(epochs: int, every: int) -> int:
    """How many validations `train.val_interval` gives, by going through the epochs."""
    return sum(every > 0 and (e % every == 0 or e == epochs - 1) for e in range(epochs))


@pytest.mark.parametrize("interval", [0, 1, 3])
@pytest.mark.parametrize("validation", [0.0, 0.5, 4.0, 60.0])
@pytest.mark.parametrize("seconds", [0.0, 9.0, 70.0, 75.0, 600.0, 3600.0])
def test_most_epochs(seconds: float, validation: float, interval: int) -> None:
    """No more fit, those that do fit, and validation has its tenth or its two."""
    epoch = 10.0
    epochs, every = most_epochs(seconds, epoch=epoch, validation=validation, interval=interval)
    cost = validation * due(epochs, every)
    assert epochs * epoch + cost <= max(seconds, 0)
    assert every >= interval
    assert cost <= max(seconds / 10, 2 * validation)
    more = epochs + 1  # with the fewest validations that there can be
    fewest = min(due(more, 10**6), due(more, 10**6) * interval)
    assert more * epoch + fewest * validation > seconds - max(seconds / 10, validation)
    if every > max(interval, 1):
        assert validation * due(epochs, every - 1) > seconds / 10 - 2 * validation
    fixed, kept = most_epochs(
        seconds, epoch=epoch, validation=validation, interval=interval, fixed=True
    )
    assert kept == interval
    assert fixed == max(
        (n for n in range(400) if n * epoch + due(n, interval) * validation <= seconds), default=0
    )


def test_the_lines(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 pictures at 10 a second, 4 s of validation: an epoch is a second."""
    speed = Speed(pictures=10.0, validation=4.0, saving=0.0)
    monkeypatch.setattr(budget, "measure", lambda recipe, *_, **__: (recipe, speed, ["settled"]))
    recipe, lines = fit(1)  # 60 s * 0.95 - 7 s = 50 s, less a nanosecond: 41 and 2 validations
    figures = "10 img/s, validation 4 s"
    line = f"41 epochs fit into 1 minute ({figures}, a validation every 40 epochs)"
    assert lines == ["settled", line]
    assert (recipe.train.epochs, recipe.train.val_interval) == (41, 40)
    assert recipe.schedule.warmup_epochs == 14, "a third of the run, as it was"
    recipe, lines = fit(1, "train.val_interval=0")
    assert recipe.train.epochs == 49
    recipe, lines = fit(1, given=("train.val_interval", "schedule.warmup_epochs"))
    assert recipe.train.epochs == 9, "5 s each"
    assert recipe.schedule.warmup_epochs == 1
    assert lines[1].endswith("(10 img/s, validation 4 s)")
    recipe, lines = fit(1, "train.start_epoch=2")
    assert recipe.train.epochs == 43
    with pytest.raises(UserError) as caught:
        fit(0.2)
    few = "--minutes 0.2: too few for one epoch of 10 pictures"
    assert str(caught.value) == f"{few} ({figures}); it needs 0.3"
    assert fit(0.3)[1][1] == f"2 epochs fit into 0.3 minutes ({figures})"
    assert fit(0.25)[1][1] == f"1 epoch fits into 0.25 minutes ({figures})"


@pytest.mark.parametrize(
    ("size", "epochs", "expected"),
    [(416, 12, 0), (416, 11.9, 384), (416, 6, 288), (416, 1, 224), (256, 0, 224), (224, 3, 0)],
)
def test_smaller_size(tiny_recipe: MakeRecipe, size: int, epochs: float, expected: int) -> None:
    choice = smaller_size(tiny_recipe(f"train.size={size}"), epochs)
    assert (choice.value if choice else 0) == expected
    shapes = tiny_recipe(f"train.size={size}", "augment.random_shape=true")
    assert smaller_size(shapes, epochs) is None


def test_few_epochs_make_the_pictures_smaller(
    fit: Fit, tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 pictures, 50 s: one a second at 416 are 5 epochs; the area decides."""

    def measured(recipe: Recipe, *_: object, **__: object) -> tuple[Recipe, Speed, list[str]]:
        return recipe, Speed((416 / recipe.train.size) ** 2, 0.0, 0.0), ["settled"]

    monkeypatch.setattr(budget, "measure", measured)

    def at_size(size: int) -> Recipe:
        return tiny_recipe(f"train.size={size}", "optim.lr=0.5")

    recipe, lines = fit(1, "train.size=416", at_size=at_size)
    assert (recipe.train.size, recipe.train.epochs, recipe.optim.lr) == (256, 13, 0.5)
    assert lines == [
        "settled",
        "train.size=256 (at 416 only 5.0 epochs fit; --size)",
        "13 epochs fit into 1 minute (2.64 img/s)",
    ]
    assert fit(1, "train.size=416")[0].train.size == 416, "it was given"
    assert fit(3, "train.size=416", at_size=at_size)[0].train.size == 416, "17 epochs"


@pytest.mark.usefixtures("quick")
def test_a_measurement_leaves_nothing_behind(
    data: Data, model: YOLOv3, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe("optim.ema=0.9", "optim.nesterov=true", "augment.mosaic=1")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    began = time.perf_counter()
    settled, speed, said = budget.measure(recipe, data, model, folder=tmp_path / "a" / "b")
    took = time.perf_counter() - began
    assert (settled, said) == (recipe, [])
    assert 0 < speed.validation < took
    assert 0 < speed.saving < took
    assert 8 / took < speed.pictures
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(generator, torch.get_rng_state())
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(param.grad is None for param in model.parameters())


def test_a_slow_loader_shows(
    data: Data, model: YOLOv3, tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 ms for each picture: 25 a second at most."""
    real = budget.make_loader

    def slow(index: object, sampler: list[list[object]], **words: object) -> object:
        for batch in real(index, sampler, **words):  # type: ignore[arg-type]
            time.sleep(0.04 * len(batch.labels))
            yield batch

    monkeypatch.setattr(budget, "make_loader", slow)
    for name in ("_TRAINING_SECONDS", "_WARM_SECONDS"):
        monkeypatch.setattr(budget, name, 0.5)
    assert data.train
    found, _ = budget.training_speed(tiny_recipe(), data.train, model)
    assert 2 < found < 25


def test_without_time_a_first_look_does(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of validation and one training step, however slow, then it is refused."""
    calls = {"evaluate": 0, "batch_losses": 0}

    def counted(name: str) -> Callable[..., object]:
        real = getattr(budget, name)

        def call(*arguments: Any, **words: Any) -> object:
            calls[name] += 1
            return real(*arguments, **words)

        return call

    for name in calls:
        monkeypatch.setattr(budget, name, counted(name))
    with pytest.raises(UserError, match=r"--minutes 0.01: too few .* img/s, validation .* s\)"):
        fit(0.01, spent=9.0)
    assert calls == {"evaluate": 1, "batch_losses": 1}


def test_a_cold_validation_does_not_count(
    data: Data, model: YOLOv3, tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.4, *[0.01] * 9])
    monkeypatch.setattr(budget, "evaluate", lambda *_, **__: time.sleep(next(seconds)))
    assert data.val
    assert 0 < budget.validation_seconds(tiny_recipe(), data, data.val, model) < 0.3


def test_a_kill_while_a_state_is_written_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When all its bytes are on their way to the disk, no name leads to them."""
    seen: list[tuple[int, list[Path]]] = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_size, list(tmp_path.iterdir())))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    took = budget.saving_seconds({"weights": torch.ones(1000, 25)}, tmp_path / "a" / "run")
    assert took > 0
    ((size, names),) = seen
    assert 100_000 < size < 101_000
    assert names == []


def test_a_place_that_cannot_be_written_is_named() -> None:
    """And not the temporary file that can't be made there."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        budget.saving_seconds({"weights": torch.ones(1)}, Path("/proc/self/a/run"))
    assert caught.value.filename == "/proc/self"


@pytest.mark.parametrize(
    ("least", "most", "size"),
    [(320, 320, 320), (320, 608, 480), (416, 608, 512)],  # root of the mean square: 473, 516
)
def test_middle_size(tiny_recipe: MakeRecipe, least: int, most: int, size: int) -> None:
    recipe = tiny_recipe("augment.random_shape=true")
    shapes = replace(recipe.augment, shape_min=least, shape_max=most)
    assert middle_size(replace(recipe, augment=shapes)) == size
    assert middle_size(tiny_recipe()) == 64
