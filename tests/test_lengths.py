"""Lengths in epochs in a run of another length: worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from triscale.lengths import with_epochs
from triscale.recipe import Recipe, load_recipe


@pytest.mark.parametrize(
    ("given", "epochs", "expected"),
    [
        ((), 200, (10, (160, 180), 0, 20)),
        ((), 20, (1, (16, 18), 0, 2)),
        ((), 24, (1, (19, 22), 0, 2)),
        ((), 5, (1, (3, 4), 0, 1)),  # 160 and 180 would both be 4
        ((), 3, (1, (1, 2), 0, 1)),
        ((), 2, (1, (1,), 0, 1)),
        ((), 1, (1, (), 0, 1)),
        ((), 400, (20, (320, 360), 0, 40)),
        (("schedule.decay_epochs",), 20, (1, (160, 180), 0, 2)),
    ],
)
def test_lengths_in_epochs_follow(
    given: tuple[str, ...], epochs: int, expected: tuple[int, tuple[int, ...], int, int]
) -> None:
    recipe = with_epochs(
        load_recipe("gluoncv-voc", overrides=["train.epochs=200", "schedule.warmup_epochs=10"]),
        epochs,
        given=given,
    )
    assert recipe.train.epochs == epochs
    schedule = recipe.schedule
    assert expected == (
        *(schedule.warmup_epochs, schedule.decay_epochs, schedule.decay_period),
        recipe.augment.mixup_off_epochs,
    )


@pytest.mark.parametrize(
    ("milestones", "epochs", "expected"),
    [
        ("[]", 5, ()),
        ("[3, 3]", 10, (3, 3)),  # the same run: as they are
        ("[3, 3]", 5, (2, 3)),
        ("[0, 9]", 5, (0, 4)),
        ("[2, 7, 8, 9]", 5, (1, 2, 3, 4)),
        ("[2, 7, 8, 9]", 4, (1, 2, 3)),
        ("[9, 12]", 5, (4, 6)),  # beyond the end it stays beyond it
    ],
)
def test_milestones_stay_apart(milestones: str, epochs: int, expected: tuple[int, ...]) -> None:
    overrides = ["train.epochs=10", f"schedule.decay_epochs={milestones}"]
    recipe = load_recipe("gluoncv-voc", overrides=overrides)
    assert with_epochs(recipe, epochs).schedule.decay_epochs == expected


def test_every_length_in_epochs_is_known() -> None:
    """A key of another name that counts epochs would stay behind."""
    names = {
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Recipe)
        for field in dataclasses.fields(getattr(Recipe(), section.name))
        if "epoch" in field.name
    }
    follow = {name for name in names if name.endswith("_epochs")}
    assert names - follow == {"train.epochs", "train.start_epoch"}
    assert {name.split(".")[0] for name in follow} == {"schedule", "augment"}
