"""SGD with momentum as MXNet, Caffe and Darknet write it.

    v <- momentum * v - lr * (gradient + weight_decay * w),    w <- w + v

Here the learning rate is inside the velocity. `torch.optim.SGD` keeps it outside, which is the same
while the rate is constant; but after a drop torch shrinks the remembered velocity along with the
rate, and while the rate warms up it scales it up. Published YOLOv3 schedules belong to this rule.

Nesterov's momentum, in the form of Sutskever et al. 2013 that moves from the point looked ahead to,
replaces the last step by w <- w + momentum * v - lr * (gradient + weight_decay * w), with the new v
and the old w. While the rate is constant that is `torch.optim.SGD(nesterov=True)`.
"""

# PyTorch has no public name for its multi-tensor operations; its own optimisers call these.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from triscale.updates import due, is_read


class SGD(torch.optim.Optimizer):
    """The rule above, its numbers per group; the state is one `velocity` for each parameter.

    `set_lr` scales a group's rate by its `factor`, and gives a group of `biases` their own.
    """

    state_names = ("velocity",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        rule = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, {"lr": lr, "factor": 1.0, "biases": False, **rule})

    @torch.no_grad()
    def step(self, *, ok: Tensor | None = None) -> None:  # type: ignore[override]  # no closures
        """Move what has a gradient and isn't held; where `ok` (() bool) is false, nothing.

        On a GPU `ok` isn't read back: its gradients must be finite also where it is false.
        """
        for group, tensors in due(self, ok, *self.state_names):
            if ok is None or is_read(ok):
                _move(group, *tensors)
            else:
                _move_where(ok, group, *tensors)


def _move(
    group: dict[str, Any], params: list[Tensor], grads: list[Tensor], velocities: list[Tensor]
) -> None:
    torch._foreach_mul_(velocities, group["momentum"])
    torch._foreach_add_(velocities, grads, alpha=-group["lr"])
    if group["weight_decay"]:
        torch._foreach_add_(velocities, params, alpha=-group["lr"] * group["weight_decay"])
    if not group["nesterov"]:
        torch._foreach_add_(params, velocities)
        return
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(params, grads, alpha=-group["lr"])
    torch._foreach_add_(params, velocities, alpha=group["momentum"])


def _move_where(
    ok: Tensor,
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
) -> None:
    """`_move` where `ok` (() bool) is true; else nothing changes. No value comes to the host."""
    gate = ok.float()
    torch._foreach_mul_(velocities, torch.where(ok, group["momentum"], 1.0))
    torch._foreach_add_(velocities, grads, alpha=-group["lr"])
    if group["weight_decay"]:
        decay = torch._foreach_mul(params, gate * (-group["lr"] * group["weight_decay"]))
        torch._foreach_add_(velocities, decay)
    if not group["nesterov"]:
        torch._foreach_add_(params, torch._foreach_mul(velocities, gate))
        return
    if group["weight_decay"]:
        torch._foreach_mul_(params, torch.where(ok, 1 - group["lr"] * group["weight_decay"], 1.0))
    torch._foreach_add_(params, grads, alpha=-group["lr"])
    torch._foreach_add_(params, torch._foreach_mul(velocities, gate * group["momentum"]))
