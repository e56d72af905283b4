"""The compiled network: the same tensors, every shape compiled once, failures said in a sentence.

The compiler's own backend takes a minute on a CPU; PyTorch's `eager` one, which runs what was
traced as it is, shows the same of everything but speed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.running import MakeRecipe, losses, run_quietly
from triscale.data.open import Data
from triscale.data.plan import Plan, PlanSampler
from triscale.errors import UserError
from triscale.model.compiled import compiled, compiling
from triscale.model.yolo import ModelConfig, build_model
from triscale.prepare import num_shapes
from triscale.step import parts_of_share


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Makes torch.compile use another backend; what was compiled is forgotten afterwards."""
    original = torch.compile

    def use(chosen: Any) -> None:
        monkeypatch.setattr(torch, "compile", partial(original, backend=chosen))

    yield use
    torch.compiler.reset()


def network() -> Any:
    generator = torch.Generator().manual_seed(0)
    return build_model(ModelConfig(backbone="tiny"), 3, generator=generator)


def test_every_shape_is_compiled_once(backend: Callable[[Any], None]) -> None:
    shapes: list[tuple[int, ...]] = []

    def noting(graph: Any, inputs: list[Any]) -> Any:
        shapes.append(next(tuple(t.shape) for t in inputs if t.shape[:2] == (2, 3)))
        return graph.forward

    backend(noting)
    model, other = network(), network()
    same = compiled(model)
    assert shapes == [], "nothing is compiled before it is asked for"
    with torch.compiler.config.patch(recompile_limit=0), compiling(2):
        for side in (32, 64, 32, 64):
            images = torch.full((2, 3, side, side), 0.5)
            found, expected = same(images), other(images)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert shapes == [(2, 3, side, side) for side in (32, 64)]
    assert [*model.state_dict()] == [*other.state_dict()]
    for name, tensor in other.state_dict().items():  # four steps of running statistics
        assert torch.equal(model.state_dict()[name], tensor), name
    assert all(a is b for a, b in zip(same.parameters(), model.parameters(), strict=True))


def test_more_shapes_than_said_are_an_error(backend: Callable[[Any], None]) -> None:
    """Else the network would run uncompiled from there on, and nobody would know."""
    backend("eager")
    same = compiled(network())
    with torch.compiler.config.patch(recompile_limit=1):
        same(torch.zeros(2, 3, 32, 32))
        with pytest.raises(UserError, match=r"train\.compile: .*fullgraph"), compiling(0):
            same(torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (RuntimeError("no such compiler: g++"), r"needs a C\+\+ compiler such as g\+\+"),
        # of PyTorch 2.13, run again after the first compilation was killed
        (ImportError("/tmp/t/cq.main.so: file too short"), r"remove PyTorch's cache"),
    ],
)
def test_a_compiler_that_fails(
    backend: Callable[[Any], None], error: Exception, advice: str
) -> None:
    def failing(graph: Any, inputs: list[Any]) -> Any:
        raise error

    backend(failing)
    same = compiled(network())
    said = re.escape(str(error))
    text = rf"^train\.compile: .*{said}.*{advice}.*--set train\.compile=false$"
    with pytest.raises(UserError, match=text), compiling(1):
        same(torch.zeros(2, 3, 32, 32))


def test_a_system_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*args: Any, **named: Any) -> None:
        raise RuntimeError("torch.compile is not supported on Python 4.0+")

    monkeypatch.setattr(torch, "compile", refusing)
    with pytest.raises(UserError, match=r"train\.compile: .*not supported on Python 4"):
        compiled(network())


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^a bug$"), compiling(1):
        raise RuntimeError("a bug")


# --- in a run ------------------------------------------------------------------------------------


def test_parts_of_a_batch_and_half_precision(
    backend: Callable[[Any], None], data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """To the bit the run that isn't compiled; 5 pictures are parts of 3 and 2, compiled once."""
    shapes: list[tuple[int, ...]] = []

    def noting(graph: Any, inputs: list[Any]) -> Any:
        shapes.append(next(tuple(t.shape) for t in inputs if t.shape[2:] == (32, 32)))
        return graph.forward

    words = (
        *("model.backbone=tiny", "optim.lr=0.0001", "train.epochs=1", "train.val_interval=0"),
        *("train.size=32", "train.batch_size=5", "train.accumulate=2", "train.precision=bf16"),
    )
    run_quietly(tiny_recipe(*words), data, tmp_path / "plain")
    backend(noting)
    with torch.compiler.config.patch(recompile_limit=0):
        recipe = tiny_recipe(*words, "train.compile=true")
        run_quietly(recipe, data, tmp_path / "compiled")
    assert shapes == [(3, 3, 32, 32), (2, 3, 32, 32)]
    assert len(losses(tmp_path / "plain")) == 2
    assert losses(tmp_path / "compiled") == losses(tmp_path / "plain")


@pytest.mark.parametrize("shapes", [(), ("augment.shape_min=64", "augment.shape_max=192")])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 7])
@pytest.mark.parametrize(("batch", "world_size"), [(1, 1), (5, 1), (8, 3), (9, 2), (16, 4)])
def test_a_run_has_no_more_shapes_than_there_is_room_for(
    tiny_recipe: MakeRecipe, batch: int, world_size: int, accumulate: int, shapes: tuple[str, ...]
) -> None:
    """Counted over all steps of each process, with the rehearsal at the largest."""
    recipe = tiny_recipe(
        *(f"train.batch_size={batch}", f"train.accumulate={accumulate}", *shapes),
        *("augment.random_shape=" + str(bool(shapes)).lower(), "augment.shape_interval=1"),
    )
    plan = Plan(40, batch, 3, 0, recipe.train.size, recipe.augment)
    run: Any = SimpleNamespace(
        plan=plan, recipe=recipe, processes=SimpleNamespace(world_size=world_size)
    )
    parts = parts_of_share(run)
    for rank in range(world_size):
        steps = PlanSampler(plan, start=0, stop=plan.steps, rank=rank, world_size=world_size)
        found = {
            (len(part), *draws[0].size)
            for draws in steps
            for part in torch.arange(len(draws)).tensor_split(min(parts, len(draws)))
        }
        if shapes:
            found.add((ceil(ceil(batch / world_size) / parts), 192, 192))
        assert 0 < len(found) <= num_shapes(recipe)
