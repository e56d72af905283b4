"""The learning rate against both of the reference's schedulers, and at the ends of a run.

Two lists come from the reference. "head" is its present scheduler as a function of T; the optimiser
asked it with T = i + 1 at iteration i, which we take for a mistake, so ours at step i is entry i.
"v030" is the scheduler of its first release, with T = i, whose curves are stretched to reach the
target one step after the end, and its warm-up likewise to reach the base rate one step after it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from triscale.errors import UserError
from triscale.schedule import Rates, ScheduleConfig, learning_rate, rates_at


def rates(config: ScheduleConfig, *, lr: float, epochs: int, firsts: list[int]) -> list[float]:
    """The rate of each step of a run whose epochs begin at `firsts`; the last entry is the end."""
    return [
        learning_rate(
            i,
            base_lr=lr,
            config=config,
            epochs=epochs,
            first_step=lambda epoch: firsts[min(epoch, len(firsts) - 1)],
        )
        for i in range(firsts[epochs])
    ]


def from_golden(case: dict[str, Any]) -> tuple[ScheduleConfig, dict[str, Any]]:
    config = ScheduleConfig(
        mode=case["mode"],
        warmup_epochs=case["warm"],
        decay=case["fac"],
        decay_epochs=tuple(case["dec"]),
    )
    return config, {"lr": case["lr"], "epochs": case["epochs"]}


@pytest.mark.golden
@pytest.mark.parametrize("index", range(7))
def test_golden_head(index: int, golden: Path) -> None:
    """All of them, after the end too."""
    entry = json.loads((golden / "lr_schedules.json").read_text())["head"][index]
    expected = entry["lr_at_num_update_0_to_n_plus_2"]
    config, run = from_golden(entry["config"])
    got = [
        learning_rate(
            i,
            base_lr=run["lr"],
            config=config,
            epochs=run["epochs"],
            first_step=lambda epoch: epoch * entry["config"]["niter"],
        )
        for i in range(len(expected))
    ]
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.golden
@pytest.mark.parametrize("index", [7, 8])
def test_golden_head_single(index: int, golden: Path) -> None:
    """One part alone, constant or linear to a target, that begins at update `offset`."""
    entry = json.loads((golden / "lr_schedules.json").read_text())["head"][index]
    case, expected = entry["config"], entry["lr_at_num_update_0_to_n_plus_2"]
    config = ScheduleConfig(mode=case["single"], target_lr=case["target_lr"])
    got = rates(config, lr=case["base_lr"], epochs=1, firsts=[0, case["niters"]])
    begin = case["offset"]
    assert got == pytest.approx(expected[begin : begin + case["niters"]], rel=1e-9)


@pytest.mark.golden
@pytest.mark.parametrize("index", range(7))
def test_golden_v030(index: int, golden: Path) -> None:
    """After the warm-up equal to ours on a run one step longer; steps don't care for the length."""
    entry = json.loads((golden / "lr_schedules.json").read_text())["v030"][index]
    expected, k = entry["lr_epoch_major"], entry["config"]["niter"]
    config, run = from_golden(entry["config"])
    firsts = [epoch * k for epoch in range(run["epochs"] + 1)]
    firsts[-1] += 1
    got = rates(config, firsts=firsts, **run)
    warm = config.warmup_epochs * k
    assert got[warm:-1] == pytest.approx(expected[warm:], rel=1e-9, abs=1e-15)
    # The warm-up has the same ends but one step: T / n there, T / (n - 1) here.
    stretched = [e * warm / (warm - 1) for e in expected[:warm]]
    assert got[:warm] == pytest.approx(stretched, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.8, 0.6, 0.4, 0.2]),
        ("poly", [1.0, 0.65, 0.4, 0.25, 0.2]),
        ("cosine", [1.0, 0.882842712, 0.6, 0.317157288, 0.2]),
    ],
)
def test_curves(mode: Any, expected: list[float]) -> None:
    config = ScheduleConfig(mode=mode, target_lr=0.2)
    assert rates(config, lr=1.0, epochs=1, firsts=[0, 5]) == pytest.approx(expected)


def test_warm_up_from_its_own_rate() -> None:
    config = ScheduleConfig(mode="constant", warmup_epochs=2, warmup_lr=0.4)
    got = rates(config, lr=1.0, epochs=3, firsts=[0, 2, 4, 6])
    assert got == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("config", "bias_lr", "momentum"),
    [
        ({}, [0.4, 0.6, 0.8, 1.0, 1.0, 0.5], [0.9] * 6),
        ({"warmup_bias_lr": 4.0}, [4.0, 3.0, 2.0, 1.0, 1.0, 0.5], [0.9] * 6),
        ({"warmup_bias_lr": 0.1}, [0.1, 0.4, 0.7, 1.0, 1.0, 0.5], [0.9] * 6),
        (
            {"warmup_momentum": 0.3},
            [0.4, 0.6, 0.8, 1.0, 1.0, 0.5],
            [0.3, 0.5, 0.7, 0.9, 0.9, 0.9],
        ),
        ({"warmup_epochs": 0, "warmup_momentum": 0.3, "warmup_bias_lr": 4.0}, None, [0.9] * 6),
    ],
    ids=["none", "biases from above", "biases from below", "momentum", "no warm-up"],
)
def test_what_warms_up_beside_the_rate(
    config: dict[str, Any], bias_lr: list[float] | None, momentum: list[float]
) -> None:
    """Four steps of warm-up, then the schedule of all."""
    base = {"mode": "step", "warmup_epochs": 2, "warmup_lr": 0.4, "decay": 0.5}
    settings = ScheduleConfig(**base | {"decay_epochs": (4,)} | config)
    firsts = [0, 2, 4, 4, 5, 6]
    expected = rates(settings, lr=1.0, epochs=5, firsts=firsts)
    found = [
        rates_at(
            step,
            base_lr=1.0,
            momentum=0.9,
            config=settings,
            epochs=5,
            first_step=lambda epoch: firsts[epoch],
        )
        for step in range(6)
    ]
    assert [each.lr for each in found] == expected
    assert [each.bias_lr for each in found] == pytest.approx(bias_lr or expected)
    assert [each.momentum for each in found] == pytest.approx(momentum)


def test_a_warm_up_of_one_step_is_over_at_once() -> None:
    config = ScheduleConfig(warmup_epochs=1, warmup_momentum=0.5, warmup_bias_lr=3.0)
    found = rates_at(
        0, base_lr=0.1, momentum=0.9, config=config, epochs=2, first_step=lambda epoch: epoch
    )
    assert found == pytest.approx(Rates(0.1, 0.1, 0.9))


@pytest.mark.parametrize(
    ("period", "epochs", "expected"),
    [
        (0, (), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (0, (1,), [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]),
        (2, (1,), [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]),  # the period wins
        (0, (4, 2, 99), [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]),  # any order, and beyond the end
    ],
)
def test_milestones(period: int, epochs: tuple[int, ...], expected: list[float]) -> None:
    config = ScheduleConfig(decay=0.5, decay_epochs=epochs, decay_period=period)
    assert rates(config, lr=1.0, epochs=6, firsts=[0, 1, 2, 3, 4, 5, 6]) == pytest.approx(expected)


def test_milestones_follow_epochs_of_unequal_length() -> None:
    config = ScheduleConfig(decay=0.5, decay_epochs=(1, 2))
    got = rates(config, lr=1.0, epochs=3, firsts=[0, 2, 5, 7])
    assert got == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("mode", ["constant", "step", "linear", "poly", "cosine"])
@pytest.mark.parametrize(
    ("warmup_epochs", "firsts"),
    [(0, [0, 0]), (0, [0, 1]), (1, [0, 1, 2]), (1, [0, 1]), (5, [0, 1])],
    ids=["no step", "one step", "one step each", "warm-up only", "warm-up longer than the run"],
)
def test_parts_of_one_step_have_the_full_rate(
    mode: Any, warmup_epochs: int, firsts: list[int]
) -> None:
    config = ScheduleConfig(mode=mode, warmup_epochs=warmup_epochs)
    steps = len(firsts) - 1
    assert rates(config, lr=0.3, epochs=steps, firsts=firsts) == [0.3] * firsts[-1]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("constant", 1.0), ("step", 0.5), ("linear", 0.1), ("poly", 0.1), ("cosine", 0.1)],
)
def test_after_the_end(mode: Any, expected: float) -> None:
    config = ScheduleConfig(mode=mode, target_lr=0.1, decay=0.5, decay_epochs=(3,))
    for step in (7, 8, 1000):
        got = learning_rate(
            step, base_lr=1.0, config=config, epochs=4, first_step=lambda epoch: 2 * epoch
        )
        assert got == pytest.approx(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("warmup_epochs", -1),
        ("warmup_lr", -0.1),
        ("warmup_lr", float("nan")),
        ("warmup_bias_lr", float("inf")),
        ("warmup_bias_lr", -0.1),
        ("warmup_momentum", 1.0),
        ("warmup_momentum", float("nan")),
        ("frozen_epochs", -1),
        ("decay", 0.0),
        ("decay", float("inf")),
        ("decay_epochs", (160, -1)),
        ("decay_period", -2),
        ("target_lr", float("inf")),
        ("power", 0.0),
    ],
)
def test_config_refuses(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^schedule\.{key}: expected .*, got "):
        ScheduleConfig(**{key: value})
