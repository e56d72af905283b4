"""All gradients in one tensor: what autograd gives, in its place; and a step that can be undone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from triscale.distributed import Processes
from triscale.gradients import Gradients, Statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Conv2d(8, 2, 1)
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def images(seed: int) -> Tensor:
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def test_gradients_are_those_of_autograd() -> None:
    """A copy that is left to autograd is the oracle; also where passes are added up."""
    model = network()
    plain = copy.deepcopy(model)
    gradients = Gradients(model, notes=2)
    memory = gradients.notes.untyped_storage().data_ptr()
    for seeds in ([1], [2, 3]):
        gradients.clear()
        plain.zero_grad()
        for seed in seeds:
            for each in (model, plain):
                each(images(seed)).square().sum().backward()
        for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            assert expected.grad is not None
            assert torch.equal(ours.grad, expected.grad)
            assert ours.grad.stride() == ours.stride()
            assert ours.grad.untyped_storage().data_ptr() == memory
    assert gradients.bytes == 4 * (sum(p.numel() for p in model.parameters()) + 2)


def test_frozen_parameters_have_no_place() -> None:
    model = network()
    model[0].requires_grad_(False)
    gradients = Gradients(model, notes=1)
    model(images(0)).sum().backward()
    assert model[0].weight.grad is None
    assert gradients.bytes == 4 * (8 + 8 + 16 + 2 + 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["kernel", "bias", "note"])
def test_one_bad_number_is_seen(place: str, value: float) -> None:
    model = network()
    gradients = Gradients(model, notes=3)
    model(images(0)).sum().backward()
    assert gradients.finite()
    bad = {"kernel": model[0].weight.grad, "bias": model[3].bias.grad, "note": gradients.notes}
    bad[place][(-1,) * bad[place].ndim] = value
    assert not gradients.finite()


def test_large_numbers_are_numbers() -> None:
    """A sum of squares would overflow."""
    model = network()
    gradients = Gradients(model, notes=1)
    gradients.notes.fill_(3e38)
    model[0].weight.grad.fill_(-3e38)
    assert gradients.finite()


def test_clearing_keeps_the_notes() -> None:
    model = network()
    gradients = Gradients(model, notes=2)
    model(images(0)).sum().backward()
    gradients.notes.copy_(torch.tensor([1.0, math.nan]))
    before = model[3].bias.grad.clone()
    gradients.clear_unless(torch.tensor(True))
    assert torch.equal(model[3].bias.grad, before)
    gradients.clear_unless(torch.tensor(False))
    assert not any(p.grad.any() for p in model.parameters())
    assert gradients.notes[0] == 1
    assert gradients.notes[1].isnan()
    gradients.clear()
    assert not gradients.notes.any()


def test_alone_an_exchange_changes_nothing() -> None:
    gradients = Gradients(network(), notes=1)
    gradients.notes.fill_(3.0)
    gradients.exchange(Processes())
    assert gradients.notes.tolist() == [3.0]


def test_statistics_come_back() -> None:
    model = network()
    statistics = Statistics(model)
    model(images(0))
    statistics.keep()
    kept = {name: b.clone() for name, b in model.named_buffers()}
    model(images(1) * math.inf)
    assert model[1].running_mean.isnan().all()
    statistics.restore_unless(torch.tensor(True))
    assert model[1].running_mean.isnan().all()
    statistics.restore_unless(torch.tensor(False))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, kept[name])
