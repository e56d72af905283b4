"""What a recipe says about the optimiser, and what the loop does with it.

The optimisers have the same interface: groups of parameters with their rates, a step that may turn
out to be none, a state of tensors that have the parameters' shapes and names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from triscale.adamw import AdamW
from triscale.errors import UserError
from triscale.sgd import SGD
from triscale.updates import MOST, kept

Optimizer = SGD | AdamW


@dataclass(frozen=True)
class OptimConfig:
    """The `[optim]` section."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.001  # the base rate, which the schedule scales
    momentum: float = 0.9
    square_momentum: float = 0.999  # adamw: of the squares of the gradients
    weight_decay: float = 5e-4
    no_wd: bool = False  # no weight decay for biases, gammas and betas
    nesterov: bool = False
    ema: float = 0.0  # decay of the moving average of the weights; 0: none; see average.py
    backbone_lr: float = 1.0  # the backbone's rates, as a factor of the others

    def __post_init__(self) -> None:
        if self.nesterov and self.name != "sgd":
            raise UserError(f"optim.nesterov: is of sgd, found optim.name={self.name}")
        for key in ("lr", "weight_decay", "backbone_lr"):
            value, zero = getattr(self, key), "0 or " * (key == "weight_decay")
            if MOST < value < math.inf:
                raise UserError(f"optim.{key}: expected at most {MOST:g}, got {value}")
            if not 0 <= value < math.inf or not (value or zero):
                frozen = " (schedule.frozen_epochs keeps the backbone as it is)"
                hint = frozen if key == "backbone_lr" else ""
                raise UserError(f"optim.{key}: expected {zero}a positive number, got {value}{hint}")
        for key in ("momentum", "square_momentum", "ema"):
            value = getattr(self, key)
            if not 0 <= value < 1:
                raise UserError(f"optim.{key}: expected a number from 0 to below 1, got {value}")


def parameter_groups(
    model: nn.Module,
    config: OptimConfig,
    *,
    biases_apart: bool = False,
    begins: int = 0,
    thaws: int = 0,
) -> list[dict[str, Any]]:
    """The trainable parameters for `make_optimizer`, those of equal settings
    together.

    With `biases_apart` the biases and the shifts of batch normalisation (betas) are groups of their
    own, for `set_lr`. All begin to move at step `begins`, the backbone perhaps later, at `thaws`.
    """
    groups: dict[tuple[float, float, bool, int], list[Tensor]] = {}
    for name, param in model.named_parameters():
        if param.requires_grad:
            # gluoncv: everything decays, the batch norms' gammas and betas too, unless no_wd. Then
            # convolution kernels do, the only parameters with more than one dimension.
            weight_decay = 0.0 if config.no_wd and param.ndim <= 1 else config.weight_decay
            backbone = name.startswith("backbone.")
            factor = config.backbone_lr if backbone else 1.0
            biases = biases_apart and name.endswith("bias")
            first = max(begins, thaws) if backbone else begins
            groups.setdefault((weight_decay, factor, biases, first), []).append(param)
    names = ("weight_decay", "factor", "biases", "first")
    return [
        {"params": params, **dict(zip(names, key, strict=True))} for key, params in groups.items()
    ]


def make_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    """What moves the parameters in the groups of `parameter_groups`."""
    if config.name == "adamw":
        return AdamW(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            square_momentum=config.square_momentum,
        )
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def set_lr(
    optimizer: Optimizer,
    lr: float,
    *,
    bias_lr: float | None = None,
    momentum: float | None = None,
    step: int = 0,
) -> None:
    """Use `lr` from the next step on, in groups of biases `bias_lr`, and everywhere `momentum`.

    AdamW wants to know which `step` of the run that is, from 0.
    """
    for group in optimizer.param_groups:
        group["step"] = step
        own = bias_lr if bias_lr is not None and group["biases"] else lr
        group["lr"] = own * group["factor"]
        if momentum is not None:
            group["momentum"] = momentum


def hold(part: nn.Module, optimizer: Optimizer, *, still: bool) -> None:
    """Let a part of the network stand still, or move like the rest again.

    While it is held its batch norms use their running statistics and leave them, autograd computes
    no gradient for its parameters, and the optimiser passes over them. Parameters that the
    optimiser doesn't have stay as they are.
    """
    part.train(not still)
    for _, param in _trained(optimizer, part):
        param.requires_grad_(not still)


def state_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's whole state as tensors named `velocity.<parameter>` (not copies), for AdamW
    `moment.<parameter>` and `square.<parameter>`."""
    return {
        f"{kind}.{name}": kept(optimizer, param, kind)
        for kind in optimizer.state_names
        for name, param in _trained(optimizer, model)
    }


@torch.no_grad()
def load_state_tensors(
    optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Copy what `state_tensors` gave into the optimiser of an equal model.

    Names of other things are passed over. Raises UserError, and changes nothing, unless there is
    exactly one tensor of the right shape for each of the optimiser's.
    """
    wanted = state_tensors(optimizer, model)
    kinds = tuple(f"{kind}." for kind in (*SGD.state_names, *AdamW.state_names))
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(kinds)}
    for name in [*wanted, *found]:
        if name not in found or name not in wanted:
            there, absent = ("model", "state") if name in wanted else ("state", "model")
            raise UserError(
                f"optimiser state: '{name}' is in the {there} but not in the {absent}; "
                "resume with the network and the optim.name that wrote it"
            )
        if found[name].shape != wanted[name].shape:
            raise UserError(
                f"optimiser state: '{name}' has shape {tuple(found[name].shape)}, "
                f"expected {tuple(wanted[name].shape)}"
            )
    for name, tensor in wanted.items():
        tensor.copy_(found[name])


def _trained(optimizer: Optimizer, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The named parameters that the optimiser moves."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, param) for name, param in model.named_parameters() if id(param) in moved]
