"""A run that stopped goes on to the bit where it was."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.running import MakeRecipe, assert_same_run, losses, run_quietly
from triscale.data.open import Data
from triscale.errors import UserError
from triscale.interrupt import Interrupted
from triscale.log import Narrator
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


def test_interrupted_by_a_signal_then_resumed(
    trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    class Impatient(Narrator):
        """Sends Ctrl-C during the fourth step."""

        steps = 0

        def advance(self, note: str = "", *, what: str | None = None) -> None:
            self.steps += 1
            if self.steps == 4:
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
        (("train.batch_size=5",), "train.batch_size changed since the run began"),
        (("train.seed=1",), "train.seed changed since the run began"),
        (("data.num_samples=9",), "the training data changed since the run began"),
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
