"""AdamW against PyTorch's own, and across steps that are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.test_optim import small_model
from triscale.adamw import AdamW
from triscale.optim import (
    OptimConfig,
    hold,
    load_state_tensors,
    make_optimizer,
    parameter_groups,
    set_lr,
    state_tensors,
)


def make(model: nn.Module) -> AdamW:
    config = OptimConfig(name="adamw", weight_decay=0.1)
    optimizer = make_optimizer(parameter_groups(model, config), config)
    assert isinstance(optimizer, AdamW)
    return optimizer


def take_gradients(model: nn.Module, step: int) -> None:
    rng = torch.Generator().manual_seed(step)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=rng) * 10 ** (step % 5 - 3)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(("momentum", "square"), [(0.9, 0.999), (0.0, 0.95)])
def test_equals_torch(weight_decay: float, momentum: float, square: float) -> None:
    ours, theirs = small_model(), small_model()
    optimizer = AdamW(
        ours.parameters(),
        lr=0.01,
        momentum=momentum,
        square_momentum=square,
        weight_decay=weight_decay,
    )
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, betas=(momentum, square), weight_decay=weight_decay
    )
    for step in range(12):
        rate = 0.01 / (1 + step)
        set_lr(optimizer, rate, step=step)
        reference.param_groups[0]["lr"] = rate
        for model in (ours, theirs):
            take_gradients(model, step)
        optimizer.step()
        reference.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_what_begins_late_begins_like_any_other() -> None:
    early, late = small_model(), small_model()
    for model, first in ((early, 0), (late, 1000)):
        optimizer = AdamW([{"params": list(model.parameters()), "first": first}], lr=0.01)
        for step in range(5):
            take_gradients(model, step)
            set_lr(optimizer, 0.01, step=first + step)
            optimizer.step()
    for a, b in zip(early.parameters(), late.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_scale_of_the_loss_does_not_matter() -> None:
    models = small_model(), small_model()
    for model, scale in zip(models, (1.0, 1000.0), strict=True):
        optimizer = AdamW(model.parameters(), lr=0.01)
        for step in range(5):
            take_gradients(model, 3)
            for param in model.parameters():
                assert param.grad is not None
                param.grad *= scale
            set_lr(optimizer, 0.01, step=step)
            optimizer.step()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("read", [True, False])
def test_a_step_that_is_none(read: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the answer isn't read, as on a GPU."""
    if not read:  # a gate that stays a tensor
        monkeypatch.setattr("triscale.updates.is_read", lambda ok: False)
    model, untouched = small_model(), small_model()
    optimizer = make(model)
    reference = make(untouched)
    for step, good in enumerate((True, False, True)):
        take_gradients(model, step)
        set_lr(optimizer, 0.01, step=step)
        if not good:
            for param in model.parameters():
                assert param.grad is not None
                param.grad.zero_()  # as Gradients.clear_unless leaves them
        optimizer.step(ok=torch.tensor(good))
        if good:
            take_gradients(untouched, step)
            set_lr(reference, 0.01, step=step)
            reference.step()
    for a, b in zip(model.parameters(), untouched.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0 if read else 1e-7)


def test_exact_resume() -> None:
    """Half of the steps, and the other half by an optimiser that was given the state."""

    def go_on(model: nn.Module, optimizer: AdamW, steps: range) -> None:
        for step in steps:
            take_gradients(model, step)
            set_lr(optimizer, 0.01, step=step)
            optimizer.step()

    whole, halves = small_model(), small_model()
    go_on(whole, make(whole), range(10))
    first = make(halves)
    go_on(halves, first, range(5))
    kept = {name: tensor.clone() for name, tensor in state_tensors(first, halves).items()}
    assert sorted({name.split(".")[0] for name in kept}) == ["moment", "square"]
    second = make(halves)
    load_state_tensors(second, halves, kept)
    go_on(halves, second, range(5, 10))
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_held_stands_still() -> None:
    model = small_model()
    optimizer = make(model)
    hold(model[0], optimizer, still=True)
    before = [param.detach().clone() for param in model.parameters()]
    take_gradients(model, 0)
    optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert same == [True, False, False, False, False]


def test_parameters_without_gradient_stay() -> None:
    weight: Tensor = nn.Parameter(torch.ones(3))
    AdamW([weight], lr=0.1, weight_decay=0.5).step()
    assert weight.tolist() == [1, 1, 1]
