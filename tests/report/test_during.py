"""The report during training: there after each validation, and never in the way."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crashing import Crasher, Fault
from tests.running import assert_same_run, begin, records
from triscale.data.open import Data
from triscale.errors import UserError
from triscale.log import Narrator
from triscale.recipe import Recipe
from triscale.report import build
from triscale.report.build import write_report
from triscale.report.found import BEST, LAST, load_found
from triscale.report.story import Story
from triscale.training import train

FILES = {"report.html", BEST, LAST}


def run_with(recipe: Recipe, data: Data, run: Path) -> str:
    """What a run says."""
    said = io.StringIO()
    train(recipe, data, run, narrator=Narrator(stream=said))
    return said.getvalue()


def test_a_run(
    data: Data,
    trained: Path,
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends bit for bit as one without a report; what it keeps is what it logged."""
    run = tmp_path / "run"
    pages: list[bytes] = []

    def keep(story: Story, path: Path) -> None:
        write_report(story, path)
        pages.append(path.read_bytes())

    monkeypatch.setattr(build, "write_report", keep)
    said = run_with(tiny_recipe("train.report=true", "checkpoint.every_steps=1"), data, run)
    assert "warning" not in said
    assert {path.name for path in run.iterdir()} >= FILES
    assert_same_run(run, trained)
    assert not FILES & {path.name for path in trained.iterdir()}  # switched off there
    evals = records(run, "eval")
    best = max(evals, key=lambda each: each["metrics"]["mAP"])
    for name, record in ((LAST, evals[-1]), (BEST, best)):
        about = load_found(run / name).about
        assert [about[key] for key in ("step", "epoch")] == [record["step"], record["epoch"]]
        assert about["mAP"] == record["metrics"]["mAP"]
        assert about["train"]["pictures"] == 10
    assert len(pages) == len(set(pages)) == len(evals) > 1  # a page each
    assert b"10 pictures" in pages[-1]
    assert (run / "report.html").read_bytes() == pages[-1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no\nsuch colour"), "ValueError: no)"),
        (UserError("x.toml: odd"), "(x.toml: odd)"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_fails_is_said(
    error: Exception,
    told: str,
    data: Data,
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(build, "write_report", fail)
    said = run_with(tiny_recipe("train.report=true", "train.epochs=1"), data, tmp_path / "run")
    assert "warning: no report.html this time (" in said
    assert told in said
    assert (tmp_path / "run" / BEST).exists()


def test_without_matplotlib(
    data: Data,
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run needs it for nothing else."""
    monkeypatch.setattr("triscale.packages.is_here", lambda name: name != "matplotlib")
    said = run_with(tiny_recipe("train.report=true", "train.epochs=1"), data, tmp_path / "run")
    assert (
        "(the page needs matplotlib, which isn't installed: pip install 'triscale[train]')" in said
    )
    assert (tmp_path / "run" / BEST).exists()


def test_the_disk_is_full(crasher: Crasher, devkit: Path, tmp_path: Path) -> None:
    """As with every file of a run: one line; when there is room again, the run goes on."""
    run = tmp_path / "run"
    words = begin(devkit, run, "train.report=true", "train.epochs=1")
    fault = Fault(str(run), at=1, how="ENOSPC", lasting=True, calls="write .report.html.*")
    outcome = crasher.run(words, fault=fault)
    assert outcome.code == 2, outcome.said
    last = outcome.said.splitlines()[-1]
    assert last.startswith("triscale: error: ")
    assert last.endswith(os.strerror(28))
    assert f"{run}/report.html" in last
    outcome = crasher.run(["train", "--resume", str(run)])
    assert outcome.code == 0, outcome.said
    assert {path.name for path in run.iterdir()} >= FILES
    assert not list(run.rglob("*.tmp"))
