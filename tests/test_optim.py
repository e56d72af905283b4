"""The optimiser's rule against the reference's weights, and its state across a restart."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from triscale.errors import UserError
from triscale.optim import (
    OptimConfig,
    hold,
    load_state_tensors,
    parameter_groups,
    set_lr,
    state_tensors,
)
from triscale.sgd import SGD, _move_where
from triscale.updates import kept


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def make_optimizer(model: nn.Module, config: OptimConfig) -> SGD:
    groups = parameter_groups(model, config)
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def train(model: nn.Module, optimizer: SGD, steps: range) -> None:
    for i in steps:
        images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        set_lr(optimizer, 0.01 / (i + 1))
        optimizer.step()


def by_hand(
    w: Tensor, grads: list[Tensor], rates: list[float], *, momentum: float, weight_decay: float
) -> list[Tensor]:
    """The weights after each step, in float64."""
    w, v, path = w.double(), torch.zeros_like(w).double(), []
    for grad, lr in zip(grads, rates, strict=True):
        v = momentum * v - lr * (grad.double() + weight_decay * w)
        w = w + v
        path.append(w)
    return path


@pytest.mark.golden
@pytest.mark.parametrize("decay", [True, False])
def test_golden_path(decay: bool, golden: Path) -> None:
    """Six steps with two drops of the rate; torch.optim.SGD leaves this path at the first."""
    arrays = np.load(golden / "optim.npz")
    w = nn.Parameter(torch.from_numpy(arrays["w0"]))
    weight_decay = float(arrays["wd"]) if decay else 0.0
    optimizer = SGD([w], lr=1.0, momentum=float(arrays["momentum"]), weight_decay=weight_decay)
    for i, lr in enumerate(arrays["lrs"]):
        w.grad = torch.from_numpy(arrays["grads"][i] / int(arrays["batch_size"]))
        set_lr(optimizer, float(lr))
        optimizer.step()
        np.testing.assert_allclose(
            w.detach().numpy(), arrays[f"w_after_wdmult{int(decay)}"][i], rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rule(weight_decay: float) -> None:
    rng = torch.Generator().manual_seed(3)
    starts = [torch.randn(shape, generator=rng) for shape in ((), (3,), (2, 3))]
    grads = [[torch.randn(s.shape, generator=rng) for _ in range(4)] for s in starts]
    params = [nn.Parameter(s.clone()) for s in starts]
    rates = [0.5, 0.5, 0.05, 0.0]
    optimizer = SGD(params, lr=9.0, momentum=0.8, weight_decay=weight_decay)
    for i, lr in enumerate(rates):
        for param, own in zip(params, grads, strict=True):
            param.grad = own[i]
        set_lr(optimizer, lr)
        optimizer.step()
    for param, start, own in zip(params, starts, grads, strict=True):
        path = by_hand(start, own, rates, momentum=0.8, weight_decay=weight_decay)
        torch.testing.assert_close(param.detach().double(), path[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torch_while_the_rate_is_constant(nesterov: bool, weight_decay: float) -> None:
    ours, theirs = small_model(), small_model()
    config = OptimConfig(lr=0.01, weight_decay=weight_decay, nesterov=nesterov)
    a = make_optimizer(ours, config)
    b = torch.optim.SGD(
        theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov
    )
    for i in range(6):
        images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(i))
        for model, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_nesterov_is_a_step_from_the_point_ahead() -> None:
    """The textbook's form, where the gradient is taken at w + momentum * v: Sutskever et al. 2013,
    equations 3 and 4. Ours keeps that point; on a parabola both can be followed in float64.
    """
    w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = SGD([w], lr=1.0, momentum=0.9, nesterov=True)
    theta, v = 1.0, 0.0
    for rate in (0.1, 0.3, 0.02, 0.02):
        w.grad = 2 * w.detach()
        set_lr(optimizer, rate)
        optimizer.step()
        v = 0.9 * v - rate * 2 * (theta + 0.9 * v)
        theta = theta + v
        assert float(w.detach()) == pytest.approx(theta + 0.9 * v, rel=1e-12)


def test_parameters_without_gradient_stay() -> None:
    still, moving = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SGD([still, moving], lr=0.1, weight_decay=0.5)
    optimizer.step()  # nothing has a gradient yet
    moving.grad = torch.ones(2)
    optimizer.step()
    assert still.tolist() == [1, 1]
    torch.testing.assert_close(moving.detach(), torch.full((2,), 0.85))


@pytest.mark.parametrize(("no_wd", "expected"), [(False, [(5, 0.2)]), (True, [(2, 0.2), (3, 0.0)])])
def test_parameter_groups(no_wd: bool, expected: list[tuple[int, float]]) -> None:
    groups = parameter_groups(small_model(), OptimConfig(weight_decay=0.2, no_wd=no_wd))
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == expected


class Detector(nn.Module):
    """A backbone, with a convolution and a batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = small_model(), nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@pytest.mark.parametrize(
    ("config", "biases_apart", "expected"),
    [
        ({}, False, {(0.2, 1.0, False): 7}),
        ({"backbone_lr": 0.5}, False, {(0.2, 0.5, False): 5, (0.2, 1.0, False): 2}),
        ({}, True, {(0.2, 1.0, False): 4, (0.2, 1.0, True): 3}),
        ({"no_wd": True}, True, {(0.2, 1.0, False): 3, (0.0, 1.0, False): 1, (0.0, 1.0, True): 3}),
        (
            {"no_wd": True, "backbone_lr": 2.0},
            True,
            {
                (0.2, 2.0, False): 2,
                (0.0, 2.0, False): 1,
                (0.0, 2.0, True): 2,
                (0.2, 1.0, False): 1,
                (0.0, 1.0, True): 1,
            },
        ),
    ],
)
def test_groups_of_a_detector(
    config: dict[str, Any], biases_apart: bool, expected: dict[tuple[float, float, bool], int]
) -> None:
    """How many parameters are in the group of each decay, factor and kind."""
    settings = OptimConfig(weight_decay=0.2, **config)
    groups = parameter_groups(Detector(), settings, biases_apart=biases_apart)
    found = {(g["weight_decay"], g["factor"], g["biases"]): len(g["params"]) for g in groups}
    assert len(groups) == len(found)
    assert found == expected


def test_rates_of_the_groups() -> None:
    model = Detector()
    config = OptimConfig(backbone_lr=0.5)
    optimizer = SGD(parameter_groups(model, config, biases_apart=True), lr=1.0, momentum=0.9)

    def found() -> dict[tuple[float, bool], tuple[float, float]]:
        return {
            (g["factor"], g["biases"]): (g["lr"], g["momentum"]) for g in optimizer.param_groups
        }

    set_lr(optimizer, 0.2)
    every = {(0.5, False), (0.5, True), (1.0, False), (1.0, True)}
    assert found() == {(factor, bias): (0.2 * factor, 0.9) for factor, bias in every}
    set_lr(optimizer, 0.2, bias_lr=0.8, momentum=0.5)
    assert found() == {
        (factor, bias): ((0.8 if bias else 0.2) * factor, 0.5) for factor, bias in every
    }


@pytest.mark.parametrize("read", [True, False])
def test_what_is_held_stands_still(read: bool) -> None:
    """No decay, no momentum and no batch moves it, though its gradients lie there as zeros."""
    model = Detector()
    model.head.bias.requires_grad_(False)  # by somebody else, for ever
    optimizer = SGD(parameter_groups(model, OptimConfig(weight_decay=0.1)), lr=0.1)
    ok = None if read else torch.tensor(True)
    for still in (False, True, True, False):
        hold(model.backbone, optimizer, still=still)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        model(images).square().sum().backward()
        optimizer.step(ok=ok)
        for name, tensor in model.state_dict().items():
            stays = name == "head.bias" or (still and name.startswith("backbone."))
            assert torch.equal(tensor, before[name]) == stays, name
        assert all(p.requires_grad != still for p in model.backbone.parameters())
        assert not model.head.bias.requires_grad


def test_frozen_parameters_are_left_out() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    (group,) = parameter_groups(model, OptimConfig())
    assert len(group["params"]) == 4


@pytest.mark.golden
@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("yolo3_darknet53_voc", 147),
        ("yolo3_mobilenet1.0_voc", 97),
        ("yolo3_mobilenet0.25_coco", 97),
    ],
)
def test_golden_no_wd_names(network: str, expected: int, golden: Path) -> None:
    """Dimensions tell the same tensors apart as the reference's pattern of names."""
    with gzip.open(golden / "param_names.json.gz") as file:
        rows = json.load(file)[network]["params"]
    model = nn.ParameterDict(
        {
            name.replace(".", "/"): nn.Parameter(torch.empty(shape, device="meta"))
            for name, shape, grad_req, *_ in rows
            if grad_req == "write"
        }
    )
    _, spared = parameter_groups(model, OptimConfig(no_wd=True))
    ids = {id(param) for param in spared["params"]}
    got = {name for name, param in model.items() if id(param) in ids}
    assert len(got) == expected
    assert got == {name for name in model if name.endswith(("beta", "gamma", "bias"))}


def test_exact_resume() -> None:
    config = OptimConfig(lr=0.01, no_wd=True)
    straight = small_model()
    train(straight, make_optimizer(straight, config), range(6))

    first = small_model()
    optimizer = make_optimizer(first, config)
    train(first, optimizer, range(3))
    saved = {name: tensor.clone() for name, tensor in state_tensors(optimizer, first).items()}
    assert sorted(saved) == sorted(f"velocity.{name}" for name, _ in first.named_parameters())

    second = small_model()
    second.load_state_dict(first.state_dict())
    optimizer = make_optimizer(second, config)
    load_state_tensors(optimizer, second, saved | {"ema.x": torch.ones(1)})
    train(second, optimizer, range(3, 6))
    for p, q in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_state_before_the_first_step_is_zero() -> None:
    model = small_model()
    state = state_tensors(make_optimizer(model, OptimConfig()), model)
    assert len(state) == 5
    assert all(tensor.count_nonzero() == 0 for tensor in state.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "'velocity.0.weight' is in the model but not in the state"),
        ({"velocity.9.weight": (1,)}, "'velocity.9.weight' is in the state but not in the model"),
        ({"velocity.1.bias": (7,)}, r"'velocity.1.bias' has shape \(7,\), expected \(4,\)"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_load_refuses(change: dict[str, tuple[int, ...]], message: str) -> None:
    model = small_model()
    optimizer = make_optimizer(model, OptimConfig())
    state = state_tensors(optimizer, model) if change else {}
    wrong = {name: torch.ones(shape) for name, shape in change.items()}
    with pytest.raises(UserError, match=f"^optimiser state: {message}"):
        load_state_tensors(optimizer, model, state | wrong)


def test_with_gradient_scaler() -> None:
    """The scaler divides the gradients first, and leaves out a step whose gradients overflow."""
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SGD([w], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, expected in ((1.0, [0.9, 1.9]), (float("inf"), [0.9, 1.9]), (1.0, [0.71, 1.71])):
        optimizer.zero_grad()
        scaler.scale((w * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        torch.testing.assert_close(w.detach(), torch.tensor(expected))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-4),
        ("weight_decay", float("nan")),
        ("ema", 1.0),
        ("ema", -0.1),
        ("ema", float("nan")),
    ],
)
def test_config_refuses(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^optim\.{key}: expected .*number.*, got {value}$"):
        OptimConfig(**{key: value})


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_backbone_needs_a_rate(value: float) -> None:
    with pytest.raises(UserError, match=rf"^optim\.backbone_lr: expected .*, got {value} \(sched"):
        OptimConfig(backbone_lr=value)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("no_wd", [False, True])
def test_a_gate_that_is_not_read(no_wd: bool, nesterov: bool) -> None:
    """What a GPU does: open, it is the rule itself; closed, nothing moves."""
    config = OptimConfig(lr=0.1, weight_decay=0.01, no_wd=no_wd, nesterov=nesterov)
    plain, gated = small_model(), small_model()
    first, second = make_optimizer(plain, config), make_optimizer(gated, config)
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    for open_ in (True, False, True):
        plain.zero_grad()
        plain.eval()(images).square().sum().backward()
        for theirs, ours in zip(plain.parameters(), gated.parameters(), strict=True):
            ours.grad = theirs.grad  # its own would make more of each rounding error
        if open_:
            first.step()
        for group in second.param_groups:
            params = group["params"]
            grads = [p.grad if open_ else torch.zeros_like(p) for p in params]
            with torch.no_grad():
                velocities = [kept(second, p, "velocity") for p in params]
                _move_where(torch.tensor(open_), group, params, grads, velocities)
        for ours, expected in zip(gated.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(
                kept(second, ours, "velocity"),
                kept(first, expected, "velocity"),
                rtol=1e-6,
                atol=1e-7,
            )


def test_a_step_that_is_none() -> None:
    """On the host the gate is simply read: gradients may be anything then."""
    model = small_model()
    optimizer = make_optimizer(model, OptimConfig(lr=0.1))
    train(model, optimizer, range(1))
    before = [p.clone() for p in model.parameters()]
    velocities = [kept(optimizer, p, "velocity").clone() for p in model.parameters()]
    for param in model.parameters():
        param.grad = torch.full_like(param, torch.nan)
    optimizer.step(ok=torch.tensor(False))
    for param, old, velocity in zip(model.parameters(), before, velocities, strict=True):
        assert torch.equal(param, old)
        assert torch.equal(kept(optimizer, param, "velocity"), velocity)
