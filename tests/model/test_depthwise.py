"""The other way back through a depthwise convolution, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from triscale.model import depthwise
from triscale.model.depthwise import StridedDepthwise, convolve
from triscale.model.layers import ConvCell


@pytest.mark.parametrize(
    ("batch", "height", "width", "kernel", "stride"),
    [(0, 4, 4, 3, 2), (1, 1, 1, 3, 2), (2, 8, 6, 3, 2), (3, 7, 9, 3, 2), (1, 11, 10, 5, 3)],
)
def test_gradients(batch: int, height: int, width: int, kernel: int, stride: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 5, height, width, generator=draw, dtype=torch.float64)
    weight = torch.randn(5, 1, kernel, kernel, generator=draw, dtype=torch.float64)
    found, expected = [x.clone(), weight.clone()], [x.clone(), weight.clone()]
    for tensor in (*found, *expected):
        tensor.requires_grad_()
    output = StridedDepthwise.apply(*found, stride)
    plain = functional.conv2d(*expected, stride=stride, padding=kernel // 2, groups=5)
    assert torch.equal(output, plain)
    ahead = torch.randn(plain.shape, generator=draw, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(output, found, ahead),
        torch.autograd.grad(plain, expected, ahead),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("stride", "groups", "dtype", "expected"),
    [
        (2, 8, torch.bfloat16, True),
        (1, 8, torch.bfloat16, False),
        (2, 1, torch.bfloat16, False),
        (2, 8, torch.float16, False),
        (2, 8, None, False),
    ],
)
def test_where_it_is_taken(
    stride: int,
    groups: int,
    dtype: torch.dtype | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []

    class Watched:
        @staticmethod
        def apply(x: Tensor, weight: Tensor, stride: int) -> Tensor:
            taken.append(stride)
            return StridedDepthwise.apply(x, weight, stride)

    monkeypatch.setattr(depthwise, "StridedDepthwise", Watched)
    cell = ConvCell(8, 8, kernel=3, stride=stride, groups=groups)
    x = torch.ones(1, 8, 6, 6)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        with torch.no_grad():
            convolve(cell.conv, x)
        assert not taken
        convolve(cell.conv, x)
    assert bool(taken) == expected


def test_a_cell_in_bfloat16_learns_as_in_float32() -> None:
    torch.manual_seed(0)
    cell = ConvCell(8, 8, kernel=3, stride=2, groups=8)
    x = torch.randn(2, 8, 16, 16)
    ahead = torch.randn(2, 8, 8, 8)
    found: list[Tensor] = []
    for half in (False, True):
        cell.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = cell(leaf)
        output.backward(ahead.to(output.dtype))
        assert cell.conv.weight.grad is not None
        assert leaf.grad is not None
        assert cell.conv.weight.grad.dtype == leaf.grad.dtype == torch.float32
        found += [leaf.grad, cell.conv.weight.grad.clone()]
    for single, half in zip(found[:2], found[2:], strict=True):
        assert (single - half).norm() < 0.02 * single.norm()
