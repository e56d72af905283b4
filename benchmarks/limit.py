"""What the processor allows: the time that a network's arithmetic takes at its best rate.

The rate is that of PyTorch's product of two large matrices, which is bound by arithmetic alone. A
direct convolution can't be faster; whatever else a program does comes on top.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from triscale.model.yolo import ModelConfig, skeleton

SIDE = 2048  # of the matrices


@lru_cache
def forward_flops(config: ModelConfig, side: int, *, classes: int = 20) -> int:
    """Multiplications and additions of one picture's way through the network; 3 times as many for a
    training step."""
    model = skeleton(config, classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops()


def seconds_at_best(flops: float, dtype: torch.dtype) -> float:
    """The time that so many operations take at the rate of a product of matrices, measured now."""
    a, b = _matrices(dtype)
    began = time.perf_counter()
    torch.mm(a, b)
    return (time.perf_counter() - began) * flops / (2 * SIDE**3)


@lru_cache
def _matrices(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=draw).to(dtype) for _ in range(2))
    return a, b
