"""What the folder of a run tells: its recipe, its log, its newest detections worth showing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from triscale.errors import UserError
from triscale.files import read_regular
from triscale.recipe import Recipe, load_recipe
from triscale.report.found import BEST, LAST, Found, load_found

Record = Mapping[str, Any]
_MAX_LOG_BYTES = 1 << 30


class Story(NamedTuple):
    """A run, as far as it has come."""

    folder: Path
    recipe: Recipe
    epochs: list[Record]  # the last training record of each epoch
    evals: list[Record]
    skipped: int  # steps
    rollbacks: int
    found: Found | None  # of the best weights, else of the newest
    notes: tuple[str, ...]  # what isn't as it should be

    @property
    def best(self) -> Record | None:
        """The validation with the highest mAP, the first one of several."""
        measured = [each for each in self.evals if each["metrics"].get("mAP") is not None]
        return max(measured, key=lambda each: each["metrics"]["mAP"], default=None)


def read_story(folder: Path) -> Story:
    """The story of the run in a folder; UserError if there is none."""
    if not (folder / "recipe.toml").is_file():
        raise UserError(f"{folder}: expected a run folder with recipe.toml and log.jsonl")
    recipe = load_recipe(folder / "recipe.toml")
    records, notes = _records(folder / "log.jsonl")
    epochs = {record["epoch"]: record for record in records if record["kind"] == "train"}
    story = Story(
        folder,
        recipe,
        list(epochs.values()),
        [record for record in records if record["kind"] == "eval"],
        sum(record["kind"] == "skipped" for record in records),
        sum(record["kind"] == "rollback" for record in records),
        None,
        notes,
    )
    for name in (BEST, LAST):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = load_found(path)
        except UserError as error:
            story = story._replace(notes=(*story.notes, str(error)))
            continue
        wanted = story.best or (story.evals[-1] if story.evals else None)
        if wanted is None or found.about.get("step") == wanted["step"]:
            return story._replace(found=found)
    return story


def _records(path: Path) -> tuple[list[Record], tuple[str, ...]]:
    """The objects of a log, and a note if there is none or if lines are no records."""
    if not path.is_file():
        return [], (f"{path}: there is no log, so the page has no curves",)
    records: list[Record] = []
    odd = 0
    lines = read_regular(path, limit=_MAX_LOG_BYTES).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if _is_record(record):
            records.append(record)
        else:
            odd += number < len(lines)  # the last one may be in the making
    return records, (f"{path}: {odd} lines are no records and were left out",) if odd else ()


def _is_record(record: Any) -> TypeGuard[Record]:
    """Whether this is a line of a log, with all that is looked for in one of its kind."""
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return False
    numbers = {"train": ("epoch", "step", "lr", "loss"), "eval": ("epoch", "step")}
    known = numbers.get(record["kind"], ())
    whole = all(isinstance(record.get(name), (int, float)) for name in known)
    return whole and (record["kind"] != "eval" or isinstance(record.get("metrics"), dict))


class Seconds(NamedTuple):
    """Where the wall time of an epoch's steps went, without its validation."""

    steps: float
    waited: float  # for data; a part of `steps`


def epoch_seconds(story: Story, place: int) -> Seconds:
    """The time of the epoch at this place of `story.epochs`, from what its last record says."""
    record = story.epochs[place]
    before = int(story.epochs[place - 1]["step"]) if place else 0
    speed = float(record.get("images_per_second") or 0.0)
    if speed <= 0:
        return Seconds(0.0, 0.0)
    images = (int(record["step"]) - before) * story.recipe.train.batch_size
    return Seconds(images / speed, float(record.get("data_seconds") or 0.0))
