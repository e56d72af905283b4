"""What an update moves, and whether it moves at all.

On a GPU the answer, one bool on the device, isn't read back: it becomes a factor of 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MOST = 1e12  # of a rate, a factor or a decay: their products must be floats too


def is_read(ok: Tensor) -> bool:
    """Whether the host may ask what `ok` (() bool) is."""
    return ok.device.type == "cpu"


def gate_of(ok: Tensor | None) -> Tensor | float:
    """1 for an update and 0 for none, as a factor; a tensor where the host may not ask."""
    return 1.0 if ok is None or is_read(ok) else ok.float()


def due(
    optimizer: torch.optim.Optimizer, ok: Tensor | None, *states: str
) -> Iterator[tuple[dict[str, Any], list[list[Tensor]]]]:
    """Each group with its parameters that have a gradient and aren't held, and beside them the
    gradients and the tensors of these `states`.

    Nothing, where the host may know that `ok` (() bool) is false.
    """
    if ok is not None and is_read(ok) and not ok:
        return
    for group in optimizer.param_groups:
        params = [p for p in group["params"] if p.requires_grad and p.grad is not None]
        if params:
            grads = [p.grad for p in params if p.grad is not None]
            rows = ([kept(optimizer, param, name) for param in params] for name in states)
            yield group, [params, grads, *rows]


def kept(optimizer: torch.optim.Optimizer, param: Tensor, name: str) -> Tensor:
    """A tensor of the state of a parameter, zero before its first step."""
    state = optimizer.state[param]
    if name not in state:
        state[name] = torch.zeros_like(param)
    return state[name]
