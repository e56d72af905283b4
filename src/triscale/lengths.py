"""A recipe for a run of another length: what it counts in epochs keeps its part of the run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from triscale.config import to_dict
from triscale.recipe import Recipe


def with_key(recipe: Recipe, key: str, value: object) -> Recipe:
    """The recipe with one `section.key` set."""
    section, name = key.split(".")
    return replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})


def with_epochs(
    recipe: Recipe, epochs: int, *, before: int | None = None, given: Collection[str] = ()
) -> Recipe:
    """The recipe with another number of epochs; all lengths in epochs keep their part of the run.

    Those are the keys of `[schedule]` and `[augment]` that end in `_epochs`, and
    `schedule.decay_period`, except for those in `given`. What isn't 0 stays at least 1. They are
    for a run of `before` epochs, by default the recipe's own number.
    """
    before, found = before or recipe.train.epochs, recipe
    if epochs == before:
        return recipe
    for section in ("schedule", "augment"):
        for name, value in to_dict(getattr(recipe, section)).items():
            key = f"{section}.{name}"
            if key not in given and (name.endswith("_epochs") or name == "decay_period"):
                many = isinstance(value, list)
                scale = _scaled_milestones if many else _scaled
                found = with_key(found, key, scale(value, before, epochs))
    return with_key(found, "train.epochs", epochs)


def _scaled(length: int, before: int, now: int) -> int:
    """A length in epochs of a run of `before`, in a run of `now`."""
    return max(1, round(length * now / before)) if length else 0


def _scaled_milestones(milestones: Sequence[int], before: int, now: int) -> tuple[int, ...]:
    """Milestones in order, each an epoch of its own, and before the end if they were.

    Two drops of the rate in one step would leave nothing to be learned at the rate between them.
    Those for which a short run has no room are left out.
    """
    old, found = sorted(milestones), list[int]()
    for milestone in old:
        found.append(max(_scaled(milestone, before, now), found[-1] + 1 if found else 0))
    latest = now
    for i in reversed(range(len(old))):
        if old[i] < before:
            latest = found[i] = min(found[i], latest - 1)
    return tuple(epoch for epoch in found if epoch >= (0 if 0 in old else 1))
