"""The average of the weights: its formula, steps that are none, and what a run makes of it.

What is expected is the formula in float64, step by step, and for the ramp its closed form: with
d = t / (t + 9) at update t the weights of step k end up with a share in proportion to the product
(k + 1) (k + 2) ... (k + 8), which is the polynomial-decay averaging of Shamir and Zhang 2013.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.running import MakeRecipe, losses, records, run_quietly
from triscale import progress, training
from triscale.average import Average, _lerp_where, decay_at
from triscale.data.open import Data
from triscale.distributed import Processes
from triscale.evaluation import evaluate
from triscale.log import Narrator
from triscale.model.yolo import YOLOv3, build_model
from triscale.training import train
from triscale.weights.formats import load_weights
from triscale.weights.native import read_tensors

YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def model(tiny_recipe: MakeRecipe) -> YOLOv3:
    model = build_model(tiny_recipe().model, 2, generator=torch.Generator().manual_seed(0))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def move(model: YOLOv3, step: int) -> None:
    """What a training step does to the tensors, as far as an average can tell."""
    rng = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=rng))
            else:
                tensor.add_(1)


def state(model: YOLOv3) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("step", "decay", "expected"),
    [(0, 0.0, 0.0), (0, 0.999, 0.1), (1, 0.999, 2 / 11), (90, 0.999, 0.91), (9000, 0.999, 0.999)],
)
def test_ramp(step: int, decay: float, expected: float) -> None:
    assert decay_at(step, decay) == pytest.approx(expected)


def test_the_ramp_is_a_polynomial_average() -> None:
    """However long a run is, its last tenth weighs as much: 1 - 0.9^9, six tenths."""
    for steps in (100, 1000):
        shares = np.zeros(steps)
        for step in range(steps):
            decay = decay_at(step, 1.0)
            shares *= decay
            shares[step] = 1 - decay
        products = [math.prod(range(k + 1, k + 9)) for k in range(1, steps + 1)]
        expected = np.array(products, float) / sum(products)
        # the rest is the share of what the run began with
        np.testing.assert_allclose(shares, expected * shares.sum(), rtol=1e-9)
        assert shares[-steps // 10 :].sum() == pytest.approx(1 - 0.9**9, abs=0.03)


def test_follows_the_formula(model: YOLOv3) -> None:
    average = Average(model, decay=0.4)
    expected = {name: tensor.double() for name, tensor in state(model).items()}
    for step in range(8):
        move(model, step)
        average.follow(step, ok=YES)
        d = min(0.4, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            mixed = d * expected[name] + (1 - d) * tensor.double()
            expected[name] = mixed if tensor.is_floating_point() else tensor
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], check_dtype=False)


def test_begins_as_a_copy_that_nothing_else_moves(model: YOLOv3) -> None:
    average = Average(model, decay=0.9)
    before = state(model)
    move(model, 0)
    assert not average.network.training
    assert not any(param.requires_grad for param in average.network.parameters())
    assert all(param.requires_grad for param in model.parameters())
    for name, tensor in average.network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.stride() == before[name].stride()


def test_a_step_that_is_none(model: YOLOv3) -> None:
    average = Average(model, decay=0.9)
    move(model, 0)
    average.follow(0, ok=YES)
    before = state(average.network)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)  # on the host it isn't even looked at
    average.follow(1, ok=NO)
    assert all(torch.equal(t, before[n]) for n, t in average.network.state_dict().items())


@pytest.mark.parametrize("open_", [True, False])
def test_a_gate_that_is_not_read(open_: bool) -> None:
    """What a GPU does: open, it is the rule itself; closed, nothing moves."""
    rng = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.randn(s, generator=rng) for s in ((), (3,), (2, 3))] for _ in range(2))
    moved = [tensor.clone() for tensor in ours]
    _lerp_where(torch.tensor(open_), moved, theirs, 0.3)
    for tensor, a, b in zip(moved, ours, theirs, strict=True):
        expected = 0.7 * a.double() + 0.3 * b.double() if open_ else a.double()
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6 if open_ else 0)


# --- in a run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory, data: Data, tiny_recipe: MakeRecipe) -> Path:
    """A finished run with an average and a state after every step."""
    run = tmp_path_factory.mktemp("averaged") / "run"
    recipe = tiny_recipe(
        *("optim.ema=0.3", "checkpoint.every_steps=1", "checkpoint.keep=20"),
        *("train.save_interval=2", "evaluate.iou=0.05"),
    )
    run_quietly(recipe, data, run)
    return run


def tensors_of(run: Path, step: int, prefix: str) -> dict[str, Tensor]:
    tensors = read_tensors(run / "last" / f"step-{step:08d}.safetensors")[0]
    return {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{prefix}.")}


def test_training_knows_nothing_of_its_average(averaged: Path, trained: Path) -> None:
    assert losses(averaged) == losses(trained)
    for prefix in ("model", "velocity"):
        ours, expected = (tensors_of(run, 7, prefix) for run in (averaged, trained))
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert tensors_of(trained, 7, "average") == {}


def test_states_hold_the_average(averaged: Path) -> None:
    """Each state's average follows from the one before and from its weights."""
    for step in range(1, 7):
        before, after = (tensors_of(averaged, s, "average") for s in (step, step + 1))
        weights = tensors_of(averaged, step + 1, "model")
        d = min(0.3, (1 + step) / (10 + step))
        for name, tensor in after.items():
            expected = d * before[name].double() + (1 - d) * weights[name].double()
            if not tensor.is_floating_point():
                expected = weights[name]
            torch.testing.assert_close(tensor, expected, check_dtype=False)


def test_weights_files_and_scores_are_the_average(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """The validation is repeated with what the file holds, and with the raw weights."""
    assert data.val is not None
    averaged = tmp_path / "run"
    recipe = tiny_recipe(
        *("optim.ema=0.3", "checkpoint.every_steps=1", "checkpoint.keep=20"),
        *("train.save_interval=2", "evaluate.iou=0.05", "model.init=uniform"),  # it hits something
    )
    run_quietly(recipe, data, averaged)
    (file,) = averaged.glob("epoch_0002_*")
    model, info = load_weights(file)
    expected = tensors_of(averaged, 7, "average")
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())

    def score() -> float | None:
        found = evaluate(
            model,
            data.val,
            size=info.size,
            input_config=info.input,
            config=recipe.evaluate,
            decode=recipe.decode,
            batch_size=4,
        )
        return found.metrics()["mAP"]

    assert score() == records(averaged, "eval")[-1]["metrics"]["mAP"]
    model.load_state_dict(tensors_of(averaged, 7, "model"))
    assert score() != records(averaged, "eval")[-1]["metrics"]["mAP"]
    best = read_tensors(averaged / "best.safetensors")[0]
    name = next(iter(expected))
    assert any(torch.equal(best[name], tensors_of(averaged, s, "average")[name]) for s in (2, 5, 7))


def test_a_run_that_had_none(
    averaged: Path, trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """A state without an average can be gone on from with one, which begins there; and back."""
    for begun, decay in ((trained, 0.3), (averaged, 0.0)):
        run = tmp_path / f"{decay}"
        shutil.copytree(begun, run, ignore=shutil.ignore_patterns("step-0000000[67].*"))
        run_quietly(tiny_recipe(f"optim.ema={decay}"), data, run, resume=True)
        assert losses(run) == losses(trained)
        assert bool(tensors_of(run, 7, "average")) == bool(decay)
        weights, expected = tensors_of(run, 7, "model"), tensors_of(trained, 7, "model")
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    name = "head.outputs.0.weight"
    mixed = tensors_of(trained, 5, "model")[name].double()
    for step in (5, 6):
        d = min(0.3, (1 + step) / (10 + step))
        mixed = d * mixed + (1 - d) * tensors_of(trained, step + 1, "model")[name].double()
    torch.testing.assert_close(
        tensors_of(tmp_path / "0.3", 7, "average")[name], mixed, check_dtype=False
    )


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ((), ""),
        (("optim.ema=0.9", "optim.lr=0.01"), ""),  # another decay is still an average
        (("optim.ema=0",), "optim.ema is"),
        (("evaluate.metric=coco",), "evaluate.metric is"),
        (("train.size=32", "decode.top_k=200"), "train.size, decode.top_k are"),
    ],
)
def test_what_is_measured_otherwise_has_a_best_mark_of_its_own(
    overrides: tuple[str, ...],
    what: str,
    averaged: Path,
    data: Data,
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
) -> None:
    """Else an average's mark would stand for ever, or one metric's compete with another's."""
    run = tmp_path / "run"
    shutil.copytree(averaged, run, ignore=shutil.ignore_patterns("step-0000000[67].*"))
    before = (run / "best.safetensors").read_bytes()
    state = json.loads((run / "last" / "step-00000005.json").read_text())
    assert state["best_lines"]
    said: list[str] = []

    class Noting(Narrator):
        def say(self, text: str) -> None:
            said.append(text)

    recipe = tiny_recipe("optim.ema=0.3", "evaluate.iou=0.05", *overrides)
    result = train(recipe, data, run, resume=True, narrator=Noting(enabled=False))
    lines = [line for line in said if "counted anew" in line]
    kept = run / "best_until_step_00000005.safetensors"
    if not what:
        assert (lines, kept.exists()) == ([], False)
        assert result.best >= state["best"]
        return
    assert lines == [
        f"{what} not as before, so the best mAP is counted anew; weights of {state['best']:.4f} "
        f"are kept in {kept.name}"
    ]
    assert kept.read_bytes() == before
    assert result.last
    assert result.best == result.last.mean
    assert (run / "best_map.log").read_text() == f"0002:\t{result.best:.4f}\n"
    assert train(recipe, data, run, resume=True, narrator=Noting(enabled=False)).best == result.best
    assert len([line for line in said if "counted anew" in line]) == 1


def test_what_is_shared_between_processes(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch statistics differ between processes, and so do their averages, until a state is saved;
    at a start and a return all of an average comes from the main process."""
    made: list[Average] = []
    shared: list[set[int]] = []

    def noting(model: YOLOv3, *, decay: float) -> Average:
        made.append(Average(model, decay=decay))
        return made[-1]

    def share(tensors: Iterable[Tensor], processes: Processes) -> None:
        shared.append({tensor.data_ptr() for tensor in tensors})

    monkeypatch.setattr(training, "Average", noting)
    for module in (training, progress):
        monkeypatch.setattr(module, "share_tensors", share)
    recipe = tiny_recipe("optim.ema=0.3", "train.epochs=1", "train.val_interval=0")
    for resume in (False, True):
        shared.clear()
        run_quietly(recipe, data, tmp_path, resume=resume)
        network = made[-1].network
        assert {tensor.data_ptr() for tensor in network.state_dict().values()} in shared
        assert ({buffer.data_ptr() for buffer in network.buffers()} in shared) != resume
