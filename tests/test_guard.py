"""Steps that are no numbers are skipped, written down, and after three the run goes back."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.many_processes import untrained
from tests.running import MakeRecipe, assert_same_run, losses, records, run_quietly, same_tensors
from triscale import guard, step, training
from triscale.data.open import Data
from triscale.distributed import Processes
from triscale.errors import UserError
from triscale.guard import Echo
from triscale.interrupt import Interrupted
from triscale.log import LOSSES, Narrator
from triscale.prepare import make_plan
from triscale.types import Losses
from triscale.weights.native import read_tensors

Poison = Callable[[Iterable[int]], list[int]]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """A function that makes one loss of some calls of `batch_losses` infinite, counted from 1; it
    gives the list in which the calls are counted."""

    def make(bad: Iterable[int], term: str = "scale") -> list[int]:
        calls: list[int] = []
        wanted = set(bad)

        def broken(*args: Any, **named: Any) -> Losses:
            calls.append(len(calls) + 1)
            found = step.batch_losses(*args, **named)
            if calls[-1] in wanted:
                found = found._replace(**{term: getattr(found, term) * math.inf})
            return found

        monkeypatch.setattr(training, "batch_losses", broken)
        return calls

    return make


@pytest.fixture(params=[0, 2], ids=["at once", "two steps later"])
def lag(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs each test twice: as on a CPU, and with the delay that a GPU has."""
    monkeypatch.setattr(training, "Echo", lambda *, lag: Echo(lag=request.param))
    return request.param


def test_nothing_wrong(
    lag: int, trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """The delay alone changes no digit."""
    run_quietly(tiny_recipe("train.log_interval=1"), data, tmp_path / "run")
    assert_same_run(tmp_path / "run", trained)
    assert not (tmp_path / "run" / "skipped").exists()


def test_a_bad_step_changes_nothing(
    lag: int, trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, poison: Poison
) -> None:
    """Step 5 is skipped: weights, velocities and statistics after it are those after step 4."""
    poison([5])
    run = tmp_path / "run"
    run_quietly(tiny_recipe("checkpoint.every_steps=1", "checkpoint.keep=20"), data, run)
    states = [run / f"last/step-{number:08d}.safetensors" for number in range(8)]
    for number in range(1, 5):
        assert same_tensors(states[number], trained / "last" / states[number].name)
    assert same_tensors(states[5], states[4])
    assert not same_tensors(states[6], states[5])
    (record,) = records(run, "skipped")
    assert record == {
        "kind": "skipped",
        "step": 5,
        "what": "the loss is no longer a finite number (scale)",
    }
    fourth, fifth = losses(run)[3:5]  # means over the steps that counted
    assert fifth == fourth | {"step": 5}


def test_what_is_written_down(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, poison: Poison
) -> None:
    poison([3])
    recipe = tiny_recipe("augment.mixup=true", "augment.mixup_off_epochs=0")
    run_quietly(recipe, data, tmp_path)
    written = json.loads((tmp_path / "skipped" / "step-00000003.json").read_text())
    assert (written["step"], written["epoch"], written["size"]) == (3, 1, [64, 64])
    assert written["losses"]["scale"] == "inf"
    assert data.train is not None
    plan = make_plan(recipe, data.train, Processes())
    for picture, draw in zip(written["pictures"], plan.draws(2), strict=True):
        assert picture["id"] == data.train.ids[draw.index]
        assert picture["path"] == data.train.paths[draw.index]
        assert (picture["seed"], picture["ratio"]) == (draw.seed, draw.ratio)
        assert draw.partner is not None
        assert picture["mixed_with"] == data.train.ids[draw.partner]
        assert all(math.isfinite(picture["losses"][name]) for name in LOSSES)
        assert len(picture["boxes"][0]) == 4


def test_the_culprit_is_told_from_the_others(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.train is not None
    plan = make_plan(tiny_recipe(), data.train, Processes())
    culprit = plan.draws(1)[2].index

    def broken(model: Any, batch: Any, grid: Any, **named: Any) -> Losses:
        found = step.batch_losses(model, batch, grid, **named)
        bad = bool((batch.image_ids == culprit).any())
        return found._replace(classes=found.classes * (math.nan if bad else 1))

    for module in (training, guard):
        monkeypatch.setattr(module, "batch_losses", broken)
    run_quietly(tiny_recipe("train.epochs=1"), data, tmp_path)
    written = json.loads((tmp_path / "skipped" / "step-00000002.json").read_text())
    assert written["what"] == "the loss is no longer a finite number (classes)"
    found = {picture["id"]: picture["losses"]["classes"] for picture in written["pictures"]}
    assert [name for name, loss in found.items() if loss == "nan"] == [data.train.ids[culprit]]


def test_after_three_the_run_goes_back_and_on(
    lag: int,
    trained: Path,
    data: Data,
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
    poison: Poison,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A passing fault leaves no trace: the run ends as if nothing had been."""
    poison([3, 4, 5])
    run = tmp_path / "run"
    recipe = tiny_recipe("checkpoint.every_steps=1", "checkpoint.keep=9")
    training.train(recipe, data, run)
    said = capsys.readouterr().err
    what = "the loss is no longer a finite number (scale)"
    assert f"warning: step 3: {what}; skipped, see {run / 'skipped'}" in said
    assert f"warning: step 5: {what}; went back to step 2" in said
    assert_same_run(run, trained)
    assert records(run, "rollback") == [{"kind": "rollback", "step": 2, "from": 5}]
    assert records(run, "skipped") == []


@pytest.mark.parametrize("bad", [[2], [3, 4, 5]], ids=["skipped", "back and on"])
def test_a_bad_step_with_an_average_and_a_held_backbone(
    bad: list[int], lag: int, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, poison: Poison
) -> None:
    """The average isn't moved, or goes back too; what is held stays so, and moves when it is time.

    The faults come in the epochs in which the backbone is held; it is free in the last one.
    """
    words = ("optim.ema=0.9", "schedule.frozen_epochs=2", "checkpoint.every_steps=1")
    recipe = tiny_recipe(*words, "checkpoint.keep=20", "train.val_interval=0")
    poison(bad)
    for name in ("disturbed", "whole"):
        narrator = Narrator(enabled=False)
        training.train(
            recipe, data, tmp_path / name, model=untrained(recipe, data), narrator=narrator
        )
    states = [tmp_path / f"disturbed/last/step-{number:08d}.safetensors" for number in range(8)]
    if len(bad) == 3:
        assert records(tmp_path / "disturbed", "rollback")
        assert same_tensors(states[7], tmp_path / "whole" / "last" / states[7].name)
    else:
        assert same_tensors(states[2], states[1])
    names = read_tensors(states[7])[0].keys()
    assert {name.partition(".")[0] for name in names} == {"model", "velocity", "average"}
    for before, moves in ((0, False), (5, True)):
        old, new = (read_tensors(states[number])[0] for number in (before or 1, before + 2))
        backbone = [name for name in old if name.startswith("model.backbone.")]
        assert any(not torch.equal(old[name], new[name]) for name in backbone) == moves


def test_if_it_comes_again_the_run_ends(
    lag: int, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, poison: Poison
) -> None:
    poison(range(3, 99))
    recipe = tiny_recipe("checkpoint.keep=9")
    text = r"step 5: the loss .* again after going back to step 2, which is .*--set optim\.lr"
    with pytest.raises(UserError, match=text):
        run_quietly(recipe, data, tmp_path / "run")
    assert [r["step"] for r in records(tmp_path / "run", "train")] == [1, 2]
    states = sorted((tmp_path / "run" / "last").glob("*.json"))
    assert [json.loads(state.read_text())["step"] for state in states] == [2]


def test_with_nothing_saved_the_run_ends(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, poison: Poison
) -> None:
    poison(range(99))
    with pytest.raises(UserError, match=r"step 3: .*no whole state to resume from; .* Try a lower"):
        run_quietly(tiny_recipe("train.batch_size=2"), data, tmp_path / "run")


def test_a_resumed_run_has_its_patience_anew(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, poison: Poison
) -> None:
    """Stopped after two bad steps: whoever goes on has changed something, or been lucky."""

    class Impatient(Narrator):
        def advance(self, note: str = "", *, what: str | None = None, amount: float = 1) -> None:
            if calls[-1] == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    recipe = tiny_recipe("train.val_interval=0")
    calls = poison([3, 4])
    with pytest.raises(Interrupted, match="stopped after step 4"):
        training.train(recipe, data, tmp_path, narrator=Impatient(enabled=False))
    poison([1, 2])
    run_quietly(recipe, data, tmp_path, resume=True)
    assert records(tmp_path, "train")[-1]["step"] == 7


def test_fp16_looks_for_its_scale_without_a_word(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Gradients that overflow at a scale of 65536 are no fault, however many follow each other."""
    run_quietly(tiny_recipe("train.precision=fp16", "train.epochs=1"), data, tmp_path)
    assert not (tmp_path / "skipped").exists()
    assert len(losses(tmp_path)) == 2


# --- news from the device ------------------------------------------------------------------------


def notes(number: float, stop: float = 0, save: float = 0) -> torch.Tensor:
    return torch.tensor([number, 1, 2, 3, stop, save])


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_reports_arrive_in_order_and_late(lag: int) -> None:
    echo = Echo(lag=lag)
    assert list(echo.receive(everything=True)) == []
    arrived: list[list[int]] = []
    for number in range(1, 5):
        echo.send(number, notes(number), torch.tensor(number != 2))
        arrived.append([report.step for report in echo.receive()])
    assert arrived == [[]] * lag + [[n] for n in range(1, 5 - lag)]
    assert [report.step for report in echo.receive(everything=True)] == list(range(5 - lag, 5))


def test_what_a_report_says() -> None:
    echo = Echo(lag=0)
    sent = notes(math.nan, stop=2, save=1)
    echo.send(7, sent, torch.tensor(False))
    sent.zero_()  # the next step's numbers come into the same memory
    (report,) = echo.receive()
    assert math.isnan(report.terms[0])
    assert report.terms[1:] == (1, 2, 3)
    assert report[2:] == (True, True, False)
    assert report.step == 7
