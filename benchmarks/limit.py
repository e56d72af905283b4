"""What the processor allows: the time of a network's arithmetic at the rate of its best kernels.

The rate is the better one of a product of two large matrices and of one large 3x3 convolution, both
PyTorch's and bound by arithmetic alone. What a program does besides convolving comes on top.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch.nn.functional import conv2d
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


def seconds_at_best(flops: float, precision: str) -> float:
    """The time of so many operations in fp32, bf16 or int8 at the best rate, measured now."""
    a, b, x, kernels = _operands(precision)
    with torch.inference_mode():
        product = torch._int_mm if precision == "int8" else torch.mm
        best = _seconds(partial(product, a, b)) / (2 * SIDE**3)
        if precision != "int8":  # PyTorch has no such convolution for plain tensors
            operations = 2 * x.numel() * kernels.numel() // kernels.shape[1]
            best = min(best, _seconds(partial(conv2d, x, kernels, padding=1)) / operations)
    return flops * best


def _seconds(call: Callable[[], object]) -> float:
    """The best of three: what else runs only ever adds."""
    times: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


@lru_cache
def _operands(precision: str) -> tuple[torch.Tensor, ...]:
    """Two matrices; a map as between Darknet-53's stages, of 4 pictures, and 3x3 kernels."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((SIDE, SIDE), (SIDE, SIDE), (4, 256, 26, 26), (512, 256, 3, 3))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[precision]
    drawn = [(32 * torch.randn(shape, generator=draw)).to(dtype) for shape in shapes]
    return tuple(
        t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in drawn
    )
