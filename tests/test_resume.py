"""A run that stopped goes on to the bit where it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.many_processes import untrained
from tests.running import MakeRecipe, assert_same_run, losses, run_quietly
from triscale import epoch
from triscale.data.open import Data
from triscale.errors import UserError
from triscale.interrupt import Interrupted
from triscale.log import Narrator
from triscale.progress import _changes
from triscale.recipe import Recipe, load_recipe
from triscale.training import train


def copy_up_to(trained: Path, step: int, into: Path) -> Path:
    """The run as a crash after step + 1 or later leaves it: two states, a longer log, best."""

    def others(_: str, names: list[str]) -> list[str]:
        states = [n for n in names if n.startswith("step-")]
        wanted = [f"step-{s:08d}" for s in (step - 1, step)]
        later = [n for n in states if Path(n).stem not in wanted]
        return later + [n for n in names if n.startswith("epoch_")]

    shutil.copytree(trained, into, ignore=others)
    return into


# --- what a run leaves behind --------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 7])
def test_resume_is_exact(
    step: int, trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """From the middle of an epoch, from its end, and from the end of the run."""
    run = copy_up_to(trained, step, tmp_path / "run")
    run_quietly(tiny_recipe(f"train.workers={step % 2}"), data, run, resume=True)
    assert_same_run(run, trained)


TRICKS = {
    "sgd": (
        *("optim.ema=0.9", "optim.nesterov=true", "optim.backbone_lr=0.5"),
        *("schedule.warmup_epochs=3", "schedule.warmup_momentum=0.5"),
        *("schedule.warmup_bias_lr=0.01", "schedule.frozen_epochs=2"),
    ),
    "adamw": (
        *("optim.name=adamw", "optim.lr=0.001", "optim.weight_decay=0.05", "optim.ema=0.9"),
        *("schedule.frozen_epochs=2", "augment.mosaic=0.7", "augment.mosaic_off_epochs=1"),
        *("assign.ratio=4.0", "assign.neighbours=true", "assign.dynamic=5"),
        *("model.scale_x_y=2.0", "loss.iou_gain=2.0", "loss.objectness_target=iou"),
    ),
}


@pytest.fixture(scope="module", params=list(TRICKS))
def tricked(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    data: Data,
    tiny_recipe: MakeRecipe,
) -> tuple[Path, Recipe]:
    """A finished run, from given weights, of all that depends on the step; a state after each."""
    run, tricks = tmp_path_factory.mktemp("tricked") / "run", TRICKS[request.param]
    recipe = tiny_recipe("checkpoint.every_steps=1", "checkpoint.keep=20", *tricks)
    model = untrained(recipe, data)
    train(recipe, data, run, model=model, narrator=Narrator(enabled=False))
    return run, tiny_recipe(*tricks)


@pytest.mark.parametrize("step", [2, 4, 5, 6])
def test_resume_is_exact_with_all_tricks(
    step: int, tricked: tuple[Path, Recipe], data: Data, tmp_path: Path
) -> None:
    """While the backbone stands still, from the step where it begins to move, and after it."""
    whole, recipe = tricked
    run = copy_up_to(whole, step, tmp_path / "run")
    run_quietly(recipe, data, run, resume=True)
    assert_same_run(run, whole)


def test_interrupted_by_a_signal_then_resumed(
    trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    class Impatient(Narrator):
        """Sends Ctrl-C after the third step."""

        steps = 0

        def advance(self, note: str = "", *, what: str | None = None) -> None:
            self.steps += 1
            if self.steps == 3:
                os.kill(os.getpid(), signal.SIGINT)

    run = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped after step 4; .*--resume {run}$"):
        train(tiny_recipe(), data, run, narrator=Impatient(enabled=False))
    assert (run / "last" / "step-00000004.json").exists()
    run_quietly(tiny_recipe(), data, run, resume=True)
    assert_same_run(run, trained)


def test_resume_passes_over_a_damaged_state(
    trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, capsys: Any
) -> None:
    run = copy_up_to(trained, 4, tmp_path / "run")
    with (run / "last" / "step-00000004.safetensors").open("r+b") as file:
        file.seek(10_000)
        file.write(b"damage")
    train(tiny_recipe(), data, run, resume=True)
    said = capsys.readouterr().err
    assert "warning: " in said
    assert "step-00000004.safetensors: damaged" in said
    assert "resuming after step 3" in said
    assert_same_run(run, trained)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("train.batch_size=5",), r"train\.batch_size \(from 4 to 5\) changed since the run began"),
        (("train.seed=1",), r"train\.seed \(from 233 to 1\) changed since the run began"),
        (
            ("data.num_samples=9",),
            r"the training data \(pictures \(from 10 to 9\), boxes .*changed",
        ),
        (("model.backbone=mobilenet0.2",), "tensors do not fit the network"),
    ],
)
def test_resume_refuses_another_run(
    overrides: tuple[str, ...],
    text: str,
    trained: Path,
    data: Data,
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
) -> None:
    run = copy_up_to(trained, 4, tmp_path / "run")
    before = (run / "log.jsonl").read_text()
    with pytest.raises(UserError, match=text):
        run_quietly(tiny_recipe(*overrides), data, run, resume=True)
    assert (run / "log.jsonl").read_text() == before


def test_resume_in_another_precision(
    data: Data, tiny_recipe: MakeRecipe, trained: Path, tmp_path: Path
) -> None:
    run = copy_up_to(trained, 2, tmp_path / "run")
    run_quietly(tiny_recipe("train.precision=fp16"), data, run, resume=True)
    assert losses(run)[-1]["step"] == losses(trained)[-1]["step"]


def test_resume_without_a_state(data: Data, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole state to resume from"):
        run_quietly(tiny_recipe(), data, tmp_path, resume=True)


# --- changes on purpose --------------------------------------------------------------------------


def test_changed_data_can_be_accepted(
    trained: Path,
    data: Data,
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once: what is written down for the next time doesn't accept anything."""
    run = copy_up_to(trained, 4, tmp_path / "run")
    assert data.train is not None
    boxes = data.train.boxes.copy()
    boxes[0, 2] -= 1
    other = data._replace(train=replace(data.train, boxes=boxes))
    text = r"the training data \(the boxes or classes of the objects\) changed since the run began"
    with pytest.raises(UserError, match=text):
        run_quietly(tiny_recipe(), other, run, resume=True)
    train(tiny_recipe("checkpoint.accept_changes=true"), other, run, resume=True)
    assert "warning: " in capsys.readouterr().err
    assert losses(run)[-1]["step"] == 7
    assert not load_recipe(run / "recipe.toml").checkpoint.accept_changes


def test_other_classes_are_named(trained: Path, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    then = {"data": {"classes": ["a", "b"], "names": "1"}, "seed": 1, "anchors": []}
    assert _changes({}, {}) == _changes(then, then) == []
    assert _changes({"val": {"pictures": 4}}, {"val": None}) == [
        "the validation data (from 4 pictures to none)"
    ]
    now = {"data": {"classes": ["a"], "names": "2"}, "seed": 1, "anchors": list(range(30))}
    assert _changes(then, now) == [
        "the training data (classes (from a, b to a), the names or the order of the pictures)",
        f"model.anchors (from none to {', '.join(map(str, range(30)))[:57]}...)",
    ]


def test_changed_validation_data_are_noticed(
    trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Else the new results would compete with a best one on other pictures."""
    run = copy_up_to(trained, 4, tmp_path / "run")
    assert data.val is not None
    fewer = data._replace(val=data.val.select(np.arange(2)))
    with pytest.raises(UserError, match=r"the validation data \(pictures \(from 4 to 2\)"):
        run_quietly(tiny_recipe(), fewer, run, resume=True)


# --- between the last step of an epoch and its validation ----------------------------------------


class Stop(Exception):  # noqa: N818
    """What a killed process doesn't even raise."""


@pytest.mark.parametrize(
    "place", ["evaluate", "write_pictures", "save_weights", "write_atomically"]
)
def test_a_validation_that_was_cut_off_is_made_up_for(
    place: str, trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Whatever of it had been done, the epoch isn't repeated and no line comes twice."""
    run = tmp_path / "run"

    def stop(*args: Any, **named: Any) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, place, stop)
        with pytest.raises(Stop):
            run_quietly(tiny_recipe(), data, run)
    (state,) = (run / "last").glob("*.json")
    assert json.loads(state.read_text())["pending"] == 0
    steps = len(losses(run))
    run_quietly(tiny_recipe(), data, run, resume=True)
    assert_same_run(run, trained)
    assert steps == 2


def test_a_signal_ends_a_validation_at_once(
    trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def asked_to_stop(*args: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **named)

    evaluate = epoch.evaluate
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "evaluate", asked_to_stop)
        with pytest.raises(Interrupted, match="stopped after step 2; "):
            run_quietly(tiny_recipe(), data, run)
    assert not (run / "best.safetensors").exists()
    run_quietly(tiny_recipe(), data, run, resume=True)
    assert_same_run(run, trained)


def test_the_last_validation_can_be_made_up_for(
    trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    run = copy_up_to(trained, 7, tmp_path / "run")
    state = run / "last" / "step-00000007.json"
    before = json.loads(state.read_text())
    state.write_text(json.dumps(before | {"pending": 2}))
    run_quietly(tiny_recipe(), data, run, resume=True)
    assert_same_run(run, trained)
    assert json.loads(state.read_text())["pending"] is None
