"""AdamW: steps whose length doesn't depend on the loss's scale (Loshchilov and Hutter 2019).

    m <- b1 * m + (1 - b1) * gradient,    s <- b2 * s + (1 - b2) * gradient^2
    w <- w - lr * weight_decay * w - lr * m' / (sqrt(s') + eps)

m' and s' are m and s divided by 1 - b1^n and 1 - b2^n at update n (Kingma and Ba 2015, section 3).
The sums of YOLOv3's loss grow with the number of objects in a picture and with their positives, and
the rate at which SGD diverges falls with them. Here one rate serves all data.
"""

# PyTorch has no public name for its multi-tensor operations; its own optimisers call these.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from triscale.updates import due, gate_of

_EPS = 1e-8


class AdamW(torch.optim.Optimizer):
    """The rule above, its numbers per group; the state is `moment` and `square` of each parameter.

    PyTorch's own has a counter of its own for each parameter. Here `set_lr` says which step it is,
    and a group's `first` is the step at which it begins to move, so that nothing but tensors of the
    parameters' shapes has to be kept.
    """

    state_names = ("moment", "square")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        square_momentum: float = 0.999,
        weight_decay: float = 0.0,
    ) -> None:
        rule = {"momentum": momentum, "square_momentum": square_momentum}
        own = {"weight_decay": weight_decay, "step": 0, "first": 0, "factor": 1.0, "biases": False}
        super().__init__(params, {"lr": lr, **rule, **own})

    @torch.no_grad()
    def step(self, *, ok: Tensor | None = None) -> None:  # type: ignore[override]  # no closures
        """Move what has a gradient and isn't held; where `ok` (() bool) is false, nothing.

        On a GPU `ok` isn't read back: its gradients must be finite also where it is false.
        """
        gate = gate_of(ok)
        for group, tensors in due(self, ok, *self.state_names):
            _move(group, gate, *tensors)


def _move(
    group: dict[str, Any],
    gate: Tensor | float,
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    squares: list[Tensor],
) -> None:
    """One update of tensors in place, `gate` 1, or none at all, `gate` 0."""
    lr, number = group["lr"], max(group["step"] - group["first"], 0) + 1
    first, second = group["momentum"], group["square_momentum"]
    # Not lerp: its weight is a number of the host's, for which a GPU would be waited for.
    for mean, news, share in (
        (moments, grads, gate * (1 - first)),
        (squares, torch._foreach_mul(grads, grads), gate * (1 - second)),
    ):
        torch._foreach_mul_(mean, 1 - share)
        torch._foreach_add_(mean, torch._foreach_mul(news, share))
    lengths = torch._foreach_sqrt(squares)
    torch._foreach_div_(lengths, math.sqrt(1 - second**number))
    torch._foreach_add_(lengths, _EPS)
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - gate * (lr * group["weight_decay"]))
    steps = torch._foreach_div(moments, lengths)
    torch._foreach_mul_(steps, gate * (-lr / (1 - first**number)))
    torch._foreach_add_(params, steps)
