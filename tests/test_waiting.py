"""Advice to a run that waits for its data; the expected numbers are reckoned by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triscale import waiting
from triscale.log import Recent
from triscale.recipe import load_recipe

ENOUGH = Recent(100, 60.0, 27.0)


def run_of(*overrides: str) -> Any:
    recipe = load_recipe("gluoncv-voc", overrides=["train.workers=2", *overrides])
    return SimpleNamespace(recipe=recipe, folder=Path("runs/a"))


@pytest.mark.parametrize(
    "recent",
    [
        Recent(0, 0.0, 0.0),
        Recent(49, 60.0, 27.0),  # too few steps
        Recent(100, 29.0, 15.0),  # too short
        Recent(100, 60.0, 11.9),  # too little
    ],
)
def test_nothing_to_say(recent: Recent) -> None:
    assert waiting.advice_on_waiting(run_of(), recent) == ""


def test_says_how_much_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "cores", lambda: 8)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    said = waiting.advice_on_waiting(run_of(), ENOUGH)
    assert said.splitlines() == [
        "waited 45% of the last 60 s for data: try 4 data loading processes (2 now, 8 cores)",
        "  (Ctrl-C, then: triscale train --resume runs/a --workers 4)",
    ]
    monkeypatch.setenv("WORLD_SIZE", "4")  # 2 cores for each process
    assert "--set data.cache=ram)" in waiting.advice_on_waiting(run_of(), ENOUGH)


@pytest.mark.parametrize(
    ("overrides", "share", "cores", "flags"),
    [
        ([], 0.25, 8, "--workers 3"),  # 2 / 0.75 = 2.7
        ([], 0.9, 8, "--workers 7"),  # a core stays with the network
        ([], 1.0, 64, "--workers 63"),
        (["train.workers=0"], 0.3, 4, "--workers 1"),
        (["train.workers=0"], 0.75, 4, "--workers 3"),
        (["train.workers=0"], 0.5, 1, "--set data.cache=ram"),
        ([], 0.5, 2, "--set data.cache=ram"),
        (["data.cache=ram"], 0.5, 2, "--set augment.fast_resize=true"),
        (["augment.fast_resize=true"], 0.5, 2, ""),
    ],
)
def test_the_setting_that_would_help(
    overrides: list[str], share: float, cores: int, flags: str
) -> None:
    recipe = run_of(*overrides).recipe
    remedy, found = waiting.remedy_for(recipe, share, cores=cores)
    assert found == flags
    assert remedy
    if flags.startswith("--set"):  # a key that exists
        load_recipe("gluoncv-voc", overrides=[flags.removeprefix("--set ")])
