"""SGD with momentum as MXNet, Caffe and Darknet write it.

    v <- momentum * v - lr * (gradient + weight_decay * w),    w <- w + v

Here the learning rate is inside the velocity. `torch.optim.SGD` keeps it outside, which is the same
while the rate is constant; but after a drop torch shrinks the remembered velocity along with the
rate, and while the rate warms up it scales it up. Published YOLOv3 schedules belong to this rule.
"""

# PyTorch has no public name for its multi-tensor operations; its own optimisers call these.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from triscale.errors import UserError


@dataclass(frozen=True)
class OptimConfig:
    """The `[optim]` section."""

    lr: float = 0.001  # the base rate, which the schedule scales
    momentum: float = 0.9
    weight_decay: float = 5e-4
    no_wd: bool = False  # no weight decay for biases, gammas and betas

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"optim.lr: expected a positive number, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise UserError(
                f"optim.momentum: expected a number from 0 to below 1, got {self.momentum}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(
                f"optim.weight_decay: expected 0 or a positive number, got {self.weight_decay}"
            )


class SGD(torch.optim.Optimizer):
    """The rule above. `lr` and `weight_decay` are per group; the state is one `velocity` each."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: None = None, *, ok: Tensor | None = None
    ) -> None:  # no closures here
        """Move every parameter that has a gradient; where `ok` (() bool) is false, nothing.

        On a GPU `ok` isn't read back: its gradients must be finite also where it is false.
        """
        assert closure is None
        if ok is not None and ok.device.type == "cpu":
            if not ok:
                return
            ok = None
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params if p.grad is not None]
            velocities = [self.velocity(p) for p in params]
            if ok is None:
                _move(params, grads, velocities, group)
            else:
                _move_where(ok, params, grads, velocities, group)

    def velocity(self, param: Tensor) -> Tensor:
        """The velocity of a parameter, zero before its first step."""
        state = self.state[param]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(param)
        return state["velocity"]


def _move(
    params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], group: dict[str, Any]
) -> None:
    torch._foreach_mul_(velocities, group["momentum"])
    torch._foreach_add_(velocities, grads, alpha=-group["lr"])
    if group["weight_decay"]:
        torch._foreach_add_(velocities, params, alpha=-group["lr"] * group["weight_decay"])
    torch._foreach_add_(params, velocities)


def _move_where(
    ok: Tensor,
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    group: dict[str, Any],
) -> None:
    """`_move` where `ok` (() bool) is true; else nothing changes. No value comes to the host."""
    gate = ok.float()
    torch._foreach_mul_(velocities, torch.where(ok, group["momentum"], 1.0))
    torch._foreach_add_(velocities, grads, alpha=-group["lr"])
    if group["weight_decay"]:
        decay = torch._foreach_mul(params, gate * (-group["lr"] * group["weight_decay"]))
        torch._foreach_add_(velocities, decay)
    torch._foreach_add_(params, torch._foreach_mul(velocities, gate))


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The trainable parameters with their weight decay, for the constructor of `SGD`."""
    params = [p for p in model.parameters() if p.requires_grad]
    if not config.no_wd:
        # gluoncv: everything decays, the batch norms' gammas and betas too.
        return [{"params": params, "weight_decay": config.weight_decay}]
    # Convolution kernels are the only parameters with more than one dimension.
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` in every group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_tensors(optimizer: SGD, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's whole state as tensors named `velocity.<parameter>` (not copies)."""
    return {
        f"velocity.{name}": optimizer.velocity(param) for name, param in _trained(optimizer, model)
    }


@torch.no_grad()
def load_state_tensors(optimizer: SGD, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy what `state_tensors` gave into the optimiser of an equal model.

    Names that don't begin with `velocity.` are passed over. Raises UserError, and changes nothing,
    unless there is exactly one velocity of the right shape for each parameter.
    """
    wanted = state_tensors(optimizer, model)
    found = {name: tensor for name, tensor in tensors.items() if name.startswith("velocity.")}
    for name in [*wanted, *found]:
        if name not in found or name not in wanted:
            there, absent = ("model", "state") if name in wanted else ("state", "model")
            raise UserError(
                f"optimiser state: '{name}' is in the {there} but not in the {absent}; "
                "resume with the network that wrote it"
            )
        if found[name].shape != wanted[name].shape:
            raise UserError(
                f"optimiser state: '{name}' has shape {tuple(found[name].shape)}, "
                f"expected {tuple(wanted[name].shape)}"
            )
    for name, velocity in wanted.items():
        velocity.copy_(found[name])


def _trained(optimizer: SGD, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The named parameters that the optimiser moves."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, param) for name, param in model.named_parameters() if id(param) in moved]
