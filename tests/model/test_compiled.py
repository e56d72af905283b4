"""The compiled network: the same tensors, every shape compiled once, failures said in a sentence.

The compiler's own backend takes a minute on a CPU; PyTorch's `eager` one, which runs what was
traced as it is, shows the same of everything but speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from triscale.errors import UserError
from triscale.model.compiled import compiled, compiling
from triscale.model.yolo import ModelConfig, build_model


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


def test_a_compiler_that_fails(backend: Callable[[Any], None]) -> None:
    def failing(graph: Any, inputs: list[Any]) -> Any:
        raise RuntimeError("no such compiler: g++")

    backend(failing)
    same = compiled(network())
    text = r"^train\.compile: .*no such compiler: g\+\+.*--set train\.compile=false$"
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
