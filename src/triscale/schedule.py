"""The learning rate as a pure function of the step.

A run has two parts: a linear warm-up, then one of five curves. The formulas are GluonCV's
(`utils/lr_scheduler.py`), but step i of a part uses T = i: there the optimiser counted updates from
1, so that every rate, and every drop, came one step early. Nothing is remembered between steps,
which makes a resumed run see the rates of the uninterrupted one.

The warm-up is that of Goyal et al. 2017, section 2.2. Momentum can warm up beside the rate, and the
rate of the biases come down from a high one: a fresh detector's outputs then find the rareness of
objects, which is the business of their biases, before anything else moves much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from triscale.config import require_amounts
from triscale.errors import UserError
from triscale.updates import MOST


@dataclass(frozen=True)
class ScheduleConfig:
    """The `[schedule]` section."""

    mode: Literal["constant", "step", "linear", "poly", "cosine"] = "step"
    warmup_epochs: int = 0
    warmup_lr: float = 0.0  # where the warm-up begins
    warmup_momentum: float = 0.0  # where the momentum begins; 0: at optim.momentum
    warmup_bias_lr: float = 0.0  # where the rate of biases and betas begins; 0: with the others
    frozen_epochs: int = 0  # first epochs, in which the backbone stands still
    decay: float = 0.1  # step: the factor at each milestone
    decay_epochs: tuple[int, ...] = (160, 180)  # step: the milestones
    decay_period: int = 0  # step: if above 0, a milestone every so many epochs instead
    target_lr: float = 0.0  # linear, poly, cosine: where the curve ends
    power: float = 2.0  # poly: its exponent
    num_samples: int = 0  # if above 0, epochs last as long as with so many pictures

    def __post_init__(self) -> None:
        rates = ("warmup_lr", "warmup_bias_lr", "target_lr")
        lengths = ("warmup_epochs", "frozen_epochs", "decay_period", "num_samples")
        require_amounts(self, "schedule", *rates, *lengths)
        for key in rates:
            if getattr(self, key) > MOST:
                raise UserError(
                    f"schedule.{key}: expected at most {MOST:g}, got {getattr(self, key)}"
                )
        if not 0 <= self.warmup_momentum < 1:
            raise UserError(
                "schedule.warmup_momentum: expected a number from 0 to below 1, "
                f"got {self.warmup_momentum}"
            )
        for key in ("decay", "power"):
            value = getattr(self, key)
            if not 0 < value < math.inf:
                raise UserError(f"schedule.{key}: expected a positive number, got {value}")
        if any(epoch < 0 for epoch in self.decay_epochs):
            raise UserError(
                f"schedule.decay_epochs: expected epochs from 0 on, got {list(self.decay_epochs)}"
            )


class Rates(NamedTuple):
    """What a step does with its gradients."""

    lr: float
    bias_lr: float  # of biases and betas; after the warm-up that of all
    momentum: float


def rates_at(
    step: int,
    *,
    base_lr: float,
    momentum: float,
    config: ScheduleConfig,
    epochs: int,
    first_step: Callable[[int], int],
) -> Rates:
    """All of a step: `learning_rate`, and what warms up beside it."""
    bias = replace(config, warmup_lr=config.warmup_bias_lr or config.warmup_lr)
    lr, bias_lr = (
        learning_rate(step, base_lr=base_lr, config=each, epochs=epochs, first_step=first_step)
        for each in (config, bias)
    )
    warmup = first_step(config.warmup_epochs)
    if config.warmup_momentum and step < warmup:
        momentum = _warm(step, warmup, config.warmup_momentum, momentum)
    return Rates(lr, bias_lr, momentum)


def learning_rate(
    step: int,
    *,
    base_lr: float,
    config: ScheduleConfig,
    epochs: int,
    first_step: Callable[[int], int],
) -> float:
    """The rate of a step (from 0) of a run of `epochs`; after the end, that of the last step.

    `first_step(epoch)` is the step at which an epoch begins; it is asked for milestones beyond the
    end too. `first_step(epochs)` is the number of steps.
    """
    assert step >= 0
    warmup = first_step(config.warmup_epochs)
    if step < warmup:
        return _warm(step, warmup, config.warmup_lr, base_lr)

    if config.mode == "constant":
        return base_lr
    if config.mode == "step":
        passed = sum(first_step(epoch) <= step for epoch in _milestones(config, epochs))
        return base_lr * config.decay**passed

    # The first step of the curve has the full rate, the last one the target.
    last = first_step(epochs) - warmup - 1
    progress = min((step - warmup) / last, 1.0) if last > 0 else 0.0
    if config.mode == "linear":
        factor = 1 - progress
    elif config.mode == "poly":
        factor = (1 - progress) ** config.power
    else:
        factor = (1 + math.cos(math.pi * progress)) / 2
    return config.target_lr + (base_lr - config.target_lr) * factor


def _warm(step: int, steps: int, begin: float, end: float) -> float:
    """The value at a step of a warm-up; its last step, also if it is the only one, has `end`."""
    progress = step / (steps - 1) if steps > 1 else 1.0
    return begin + (end - begin) * progress


def _milestones(config: ScheduleConfig, epochs: int) -> tuple[int, ...]:
    """The epochs at which mode "step" multiplies the rate by `decay`."""
    if config.decay_period > 0:
        return tuple(range(config.decay_period, epochs, config.decay_period))
    return config.decay_epochs
