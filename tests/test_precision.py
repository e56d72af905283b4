"""The choice of a precision: by measured times, the same for all, without a trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY
from tests.running import run_quietly
from triscale import precision, runs
from triscale.checkpoint import load_state
from triscale.data.open import Data
from triscale.distributed import Processes
from triscale.errors import UserError
from triscale.model.yolo import YOLOv3, build_model
from triscale.precision import bf16_gain, settle_precision
from triscale.recipe import Recipe, dump_recipe, load_recipe

CPU = torch.device("cpu")


def made(*overrides: str) -> tuple[Recipe, YOLOv3]:
    recipe = load_recipe("small", overrides=[*TINY, *overrides])
    return recipe, build_model(recipe.model, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("given", ["fp32", "bf16", "fp16"])
def test_what_is_given_stays(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_gain", None)  # can't be called
    recipe, model = made(f"train.precision={given}")
    assert settle_precision(recipe, model, device=CPU, processes=Processes()) == (recipe, "")


@pytest.mark.parametrize(
    ("gain", "chosen"), [(0.3, "fp32"), (1.19, "fp32"), (1.2, "bf16"), (2.5, "bf16")]
)
def test_the_faster_one(gain: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_gain", lambda *_, **__: gain)
    recipe, model = made("train.precision=auto")
    settled, said = settle_precision(recipe, model, device=CPU, processes=Processes())
    assert settled == replace(recipe, train=replace(recipe.train, precision=chosen))
    why = f"bf16 is {gain:.2f}x as fast as fp32 here; it is taken from 1.2x on"
    assert said == f"train.precision auto: {chosen} ({why})"


def test_a_gpu_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_gain", None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    recipe, model = made("train.precision=auto")
    settled, said = settle_precision(
        recipe, model, device=torch.device("cuda"), processes=Processes()
    )
    assert settled.train.precision == "fp32"
    assert said == "train.precision auto: fp32 (this GPU has no bf16)"


def test_the_main_process_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_gain", lambda *_, **__: 9.0)
    monkeypatch.setattr(precision, "share_value", lambda *_, **__: ["fp32", "it was slow"])
    recipe, model = made("train.precision=auto")
    other = Processes(rank=1, world_size=2)
    settled, said = settle_precision(recipe, model, device=CPU, processes=other)
    assert settled.train.precision == "fp32"
    assert said == "train.precision auto: fp32 (it was slow)"


@pytest.mark.parametrize("training", [False, True])
def test_measuring_leaves_no_trace(training: bool) -> None:
    recipe, model = made("train.precision=auto")
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    assert bf16_gain(recipe, model, device=CPU) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training == training


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "bf16"),
        (["train.precision=auto"], "bf16"),
        (['train.precision = "auto"', "train.workers=0"], "bf16"),
        (["train.precision=fp32"], "fp32"),
    ],
)
def test_a_run_that_goes_on_keeps_its_precision(
    overrides: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a job that was started with "auto" is started again with the same words."""

    def settings(settings: Recipe, run: Path, *, resume: bool, volume: str) -> Any:
        assert resume
        return settings

    monkeypatch.setattr(runs, "_run", settings)
    (tmp_path / "recipe.toml").write_text(dump_recipe(made("train.precision=bf16")[0]))
    found: Any = runs.resume_run(tmp_path, overrides=overrides)
    assert found.train.precision == expected


def test_a_run_keeps_what_was_chosen(
    devkit: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its folder and its states; a second measurement would be another choice."""
    gains = iter([2.0])
    monkeypatch.setattr(precision, "bf16_gain", lambda *_, **__: next(gains))
    run = tmp_path / "run"
    asked = load_recipe("small", overrides=[*TINY, "train.epochs=1", "train.precision=auto"])
    runs.start_run(devkit, asked, name="tiny", out=run)
    kept = load_recipe(run / "recipe.toml")
    assert kept.train.precision == "bf16"
    state, _ = load_state(run / "last")
    assert state.values["recipe"]["train"]["precision"] == "bf16"
    runs.resume_run(run, overrides=["train.precision=auto", "train.epochs=2"])
    assert load_recipe(run / "recipe.toml").train.precision == "bf16"
    with pytest.raises(UserError, match=r"resume with what 'auto' chose, see .*recipe\.toml"):
        run_quietly(asked, data, run, resume=True)
