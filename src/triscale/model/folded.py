"""A network for inference only: batch normalisation folded into the convolutions.

At inference batch normalisation is affine with constants (Ioffe and Szegedy 2015, section 3.1), so
a cell is a convolution with a bias, then an activation. On CPUs oneDNN does both at once, and its
kernels want the weights in an order of their own: they are brought into it here, not in each call.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from triscale.model.layers import ConvCell
from triscale.model.yolo import YOLOv3

Precision = Literal["fp32", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORTH = 1.2  # so many times faster half precision must be, for what it loses
# The best order of the weights depends a little on the map. This one's is within 6 % of the best
# for inputs of 416 px, at batch 1 and 8.
PACKING_SIDE = 26
CHUNK = 1 << 16  # numbers that are folded at once, so that their float64 stays in the cache


class _Shape(NamedTuple):
    """How a convolution walks over its input, in oneDNN's order."""

    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class FoldedCell(nn.Module):
    """Convolution with bias, (leaky) ReLU or nothing: (B, C, H, W) -> (B, C', H', W').

    It computes in the type of `weight`, (C', C / groups, k, k), whatever the input's, and keeps
    copies.
    """

    def __init__(
        self, conv: nn.Conv2d, weight: Tensor, *, bias: Tensor, slope: float | None
    ) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple)
        self.slope, self.dtype = slope, weight.dtype
        self.shape = _Shape(conv.padding, conv.stride, conv.dilation, conv.groups)
        self.bias = nn.Parameter(bias.to(weight.dtype, copy=True), requires_grad=False)
        self.fused = weight.device.type == "cpu" and _can_fuse(weight.dtype)
        # Not a parameter: packed weights are opaque, they can't be moved, cast or saved.
        self.weight = (
            _pack(weight, self.shape)
            if self.fused
            else weight.clone(memory_format=torch.channels_last)
        )

    def forward(self, x: Tensor) -> Tensor:
        convolve = _fused if self.fused else _plain
        return convolve(x.to(self.dtype), self.weight, self.bias, self.shape, self.slope)


def fold(model: YOLOv3, *, dtype: torch.dtype = torch.float32) -> YOLOv3:
    """The function of `model` in evaluation mode, faster; it stays on the device of `model`.

    With a half-precision `dtype` all but the last convolutions compute in it: raw predictions are
    float32 always. The result shares no memory with `model`, and can't be trained or saved.
    """
    found = [module for module in model.modules() if isinstance(module, ConvCell)]
    most = max(cell.conv.weight.numel() for cell in found)
    # New memory comes page by page, which takes longer than the arithmetic: one for all cells.
    scratch = torch.empty(most, dtype=dtype, device=found[0].conv.weight.device)
    cells: dict[int, Any] = {}
    with torch.no_grad():
        for cell in found:
            cells[id(cell)] = _fold_cell(cell, scratch)
        for layer in model.head.outputs:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            cells[id(layer)] = FoldedCell(layer, layer.weight, bias=layer.bias, slope=None)
        # What has a substitute isn't copied, and neither are its weights.
        return copy.deepcopy(model, cells).eval()


def _fold_cell(cell: ConvCell, scratch: Tensor) -> FoldedCell:
    """gain * (weight * x) + shift = (gain * weight) * x + shift, in the type of `scratch`."""
    norm = cell.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # (C',)
    shift = norm.bias.double() - norm.running_mean.double() * gain
    weight = scratch[: cell.conv.weight.numel()].view(cell.conv.weight.shape)
    rows = max(1, CHUNK // cell.conv.weight[0].numel())
    parts = (t.split(rows) for t in (cell.conv.weight, gain[:, None, None, None], weight))
    for old, factor, new in zip(*parts, strict=True):
        torch.mul(old, factor, out=new)  # in float64, then rounded
    return FoldedCell(cell.conv, weight, bias=shift, slope=cell.slope)


def _plain(x: Tensor, weight: Tensor, bias: Tensor, shape: _Shape, slope: float | None) -> Tensor:
    y = functional.conv2d(
        x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups
    )
    if slope is None:
        return y
    return functional.leaky_relu(y, slope, inplace=True) if slope else y.relu_()


def _fused(x: Tensor, weight: Tensor, bias: Tensor, shape: _Shape, slope: float | None) -> Tensor:
    if slope is None:
        activation, numbers = "none", []
    else:
        activation, numbers = ("leaky_relu", [slope]) if slope else ("relu", [])
    kernels: Any = torch.ops.mkldnn
    return kernels._convolution_pointwise(x, weight, bias, *shape, activation, numbers, "")


def _pack(weight: Tensor, shape: _Shape) -> Tensor:
    """The weights in oneDNN's order for a convolution of such a shape."""
    kernels: Any = torch.ops.mkldnn
    size = (1, weight.shape[1] * shape.groups, PACKING_SIDE, PACKING_SIDE)
    return kernels._reorder_convolution_weight(weight, *shape, size)


@lru_cache
def _can_fuse(dtype: torch.dtype) -> bool:
    """Whether `_fused` is there and gives what `_plain` gives.

    PyTorch's compiler is built on these functions, but their names aren't public: a later version
    may have others, and a build may lack oneDNN or its half precision.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 7, 5, generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(32, generator=generator).to(dtype)
    for groups, slope in ((1, 0.1), (1, None), (32, 0.0)):
        weight = (torch.randn(32, 32 // groups, 3, 3, generator=generator) / 16).to(dtype)
        shape = _Shape((1, 1), (2, 2), (1, 1), groups)
        expected = _plain(x, weight, bias, shape, slope).float()
        try:
            found = _fused(x, _pack(weight, shape), bias, shape, slope).float()
        except (AttributeError, RuntimeError, TypeError):
            return False
        tolerance = 1e-5 if dtype == torch.float32 else 0.02  # the results are up to about 4
        if found.shape != expected.shape or not bool((found - expected).abs().max() < tolerance):
            return False
    return True


def faster_precision(device: torch.device) -> Precision:
    """Half precision if a convolution as the networks have most is clearly faster in it here."""
    # 3x3, from 128 to 256 channels; a GPU needs more work to be busy
    side, size = 52, 32 if device.type == "cuda" else 1
    conv = nn.Conv2d(128, 256, 3, padding=1, device="meta")
    x = torch.zeros(size, 128, side, side, device=device).to(memory_format=torch.channels_last)
    weight, bias = torch.zeros(256, 128, 3, 3, device=device), torch.zeros(256, device=device)

    def convolution(dtype: torch.dtype) -> Callable[[], Tensor]:
        return partial(FoldedCell(conv, weight.to(dtype), bias=bias, slope=0.1), x.to(dtype))

    with torch.inference_mode():
        full, half = (convolution(DTYPES[name]) for name in ("fp32", "bf16"))
        return "bf16" if speed_up(full, half, device=device, rounds=3) >= WORTH else "fp32"


def speed_up(
    before: Callable[[], object], after: Callable[[], object], *, device: torch.device, rounds: int
) -> float:
    """By how many times `after` takes less time than `before`, each called in turn.

    The best of the rounds counts: what else runs on the machine only ever adds. One more is for
    warming up, when kernels are compiled.
    """

    def seconds(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    times = [(seconds(before), seconds(after)) for _ in range(1 + rounds)][1:]
    return min(slow for slow, _ in times) / min(fast for _, fast in times)
