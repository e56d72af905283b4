"""Training runs for the tests, and how two of them compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.conftest import TINY, set_words
from triscale.data.open import Data
from triscale.log import Narrator
from triscale.recipe import Recipe
from triscale.training import Result, train
from triscale.weights.native import read_tensors

MakeRecipe = Callable[..., Recipe]
TIMES = ("images_per_second", "data_seconds")


def begin(devkit: Path, run: Path, *overrides: str) -> list[str]:
    """The words that start a run of five steps in two epochs, each with a state."""
    sets = (*TINY, "train.epochs=2", "checkpoint.every_steps=1", "train.save_interval=1")
    words = ["train", str(devkit), "--recipe", "small", "--out", str(run)]
    return [*words, *set_words(*sets, *overrides)]


def run_quietly(recipe: Recipe, data: Data, run: Path, *, resume: bool = False) -> Result:
    return train(recipe, data, run, resume=resume, narrator=Narrator(enabled=False))


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(run: Path) -> list[dict[str, Any]]:
    """The training records without what a clock decides."""
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records(run, "train")]


def same_tensors(a: Path, b: Path) -> bool:
    first, second = read_tensors(a)[0], read_tensors(b)[0]
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def assert_same_run(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    assert records(a, "eval") == records(b, "eval")
    assert (a / "best_map.log").read_text() == (b / "best_map.log").read_text()
    assert same_tensors(a / "best.safetensors", b / "best.safetensors")
    newest = max((a / "last").glob("*.safetensors")).name
    assert same_tensors(a / "last" / newest, b / "last" / newest)
