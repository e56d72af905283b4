"""The parts that all networks share: the convolution cell and the detection head.

YOLOv3 (Redmon and Farhadi 2018, sections 2.3 and 2.4) is built from one cell, convolution, batch
normalisation and leaky ReLU. Its head walks from the deepest feature map to the shallowest, as a
feature pyramid (Lin et al. 2017): each block predicts at its stride and hands a narrower map,
upsampled and concatenated with the backbone's, to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, cat, nn
from torch.nn import functional

from triscale.model.depthwise import convolve

LEAKY_SLOPE = 0.1  # Darknet's `activation=leaky`


class ConvCell(nn.Module):
    """Convolution without bias, batch normalisation, (leaky) ReLU: (B, C, H, W) -> (B, C', H', W').

    The padding keeps the map size at stride 1 and makes it ceil(side / 2) at stride 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        slope: float = LEAKY_SLOPE,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        )
        # As in GluonCV (Darknet itself divides by the standard deviation + 1e-6). MXNet's momentum
        # 0.9 weights the old running value, PyTorch's 0.1 the new one.
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1)
        self.act = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(convolve(self.conv, x)))


class SpatialPyramid(nn.Module):
    """(B, C, H, W) -> (B, 4C, H, W): the map beside its maxima over 5, 9 and 13 pixels.

    He et al. 2015, "Spatial Pyramid Pooling", in the form and the order of Darknet's
    cfg/yolov3-spp.cfg.
    """

    def forward(self, x: Tensor) -> Tensor:
        pooled = [functional.max_pool2d(x, k, stride=1, padding=k // 2) for k in (13, 9, 5)]
        return cat([*pooled, x], dim=1)


class DetectionBlock(nn.Module):
    """x -> route, which the next stride goes on from, and tip, which this stride predicts from."""

    def __init__(self, body: nn.Sequential, tip: ConvCell) -> None:
        super().__init__()
        self.body = body
        self.tip = tip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        route = self.body(x)
        return route, self.tip(route)


class Head(nn.Module):
    """Backbone maps -> raw prediction maps, both deepest first.

    One block and one output convolution per stride, and a transition between each two strides.
    """

    def __init__(
        self,
        blocks: Sequence[DetectionBlock],
        *,
        transitions: Sequence[ConvCell],
        outputs: Sequence[nn.Conv2d],
    ) -> None:
        super().__init__()
        assert len(blocks) == len(outputs) == len(transitions) + 1
        self.blocks = nn.ModuleList(blocks)
        self.transitions = nn.ModuleList(transitions)
        self.outputs = nn.ModuleList(outputs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """S maps (B, C_s, H_s, W_s) -> S maps (B, A * (5 + C), H_s, W_s)."""
        maps: list[Tensor] = []
        x = features[0]
        for i, (block, output) in enumerate(zip(self.blocks, self.outputs, strict=True)):
            if i > 0:
                x = _upsample_onto(self.transitions[i - 1](x), features[i])
            x, tip = block(x)
            maps.append(output(tip))
        return maps


def _upsample_onto(x: Tensor, skip: Tensor) -> Tensor:
    """(B, C, h, w) and (B, D, H, W) -> (B, C + D, H, W), with h = ceil(H / 2), w = ceil(W / 2)."""
    # Pixels are repeated and then cropped: interpolating straight to an odd H would shift them.
    x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return cat([x[..., : skip.shape[-2], : skip.shape[-1]], skip], dim=1)


def yolo3_head(
    in_channels: Sequence[int],
    *,
    widths: Sequence[int],
    out_channels: Sequence[int],
    spp: bool = False,
) -> Head:
    """YOLOv3's head; the three sequences have one entry per stride, deepest first.

    A block of width c: cells 1x1 c, 3x3 2c, 1x1 c, 3x3 2c, 1x1 c (route), then 3x3 2c (tip). With
    `spp` the first block has the pyramid and one more 1x1 cell after its third.
    """
    blocks: list[DetectionBlock] = []
    for i, (channels, width) in enumerate(zip(in_channels, widths, strict=True)):
        upsampled = width if i > 0 else 0  # channels that come from the stride before
        pyramid = [SpatialPyramid(), ConvCell(4 * width, width, kernel=1)]
        body = nn.Sequential(
            ConvCell(upsampled + channels, width, kernel=1),
            ConvCell(width, 2 * width, kernel=3),
            ConvCell(2 * width, width, kernel=1),
            *(pyramid if spp and i == 0 else []),
            ConvCell(width, 2 * width, kernel=3),
            ConvCell(2 * width, width, kernel=1),
        )
        blocks.append(DetectionBlock(body, ConvCell(width, 2 * width, kernel=3)))
    return Head(
        blocks,
        transitions=[ConvCell(width, following, kernel=1) for width, following in pairwise(widths)],
        outputs=[
            nn.Conv2d(2 * width, channels, 1)
            for width, channels in zip(widths, out_channels, strict=True)
        ],
    )
