"""Depthwise convolutions with a stride in bfloat16 on CPUs: another way back, ten times as fast.

oneDNN 3.12 has a kernel for depthwise convolutions, but not for the gradient of their input in
bfloat16 with a stride: it takes one for dense convolutions then, which alone was an eighth of a
training step of mobilenet1.0. That gradient is the depthwise convolution, without stride, of the
output's gradient with zeros in between and the kernel turned by half a circle (Dumoulin and Visin
2016, "A guide to convolution arithmetic", section 4.6); for this there is a fast kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.grad import conv2d_weight


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv(x)`: (B, C, H, W) -> (B, C', H', W'); where it helps, with the other way back."""
    if (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.stride[0] > 1
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    ):
        return StridedDepthwise.apply(x.bfloat16(), conv.weight.bfloat16(), conv.stride[0])
    return conv(x)


class StridedDepthwise(Function):
    """(B, C, H, W), (C, 1, k, k) with odd k, s -> (B, C, ceil(H / s), ceil(W / s))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.stride = stride
        padding = kernel.shape[-1] // 2
        return functional.conv2d(x, kernel, stride=stride, padding=padding, groups=len(kernel))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, kernel = ctx.saved_tensors
        (grad,) = grads
        stride, padding, groups = ctx.stride, kernel.shape[-1] // 2, len(kernel)
        spread = torch.zeros_like(x)
        spread[:, :, ::stride, ::stride] = grad
        towards_x = functional.conv2d(spread, kernel.flip(2, 3), padding=padding, groups=groups)
        towards_kernel = conv2d_weight(
            x, kernel.shape, grad, stride=stride, padding=padding, groups=groups
        )
        return towards_x, towards_kernel, None
