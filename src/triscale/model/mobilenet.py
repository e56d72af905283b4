"""MobileNet v1 as a backbone (Howard et al. 2017, table 1): 3x3 convolutions split into a depthwise
and a 1x1 convolution, an order of magnitude cheaper than Darknet-53."""

from __future__ import annotations

from torch import Tensor, nn

from triscale.model.layers import ConvCell

# (output channels at width 1, stride) of the 13 separable blocks, cut after strides 8, 16 and 32.
STAGES = (
    ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)
STEM_CHANNELS = 32


class Separable(nn.Module):
    """A 3x3 depthwise cell and a 1x1 cell: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.depthwise = ConvCell(
            in_channels, in_channels, kernel=3, stride=stride, groups=in_channels, slope=0.0
        )
        self.pointwise = ConvCell(in_channels, out_channels, kernel=1, slope=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class MobileNet(nn.Module):
    """MobileNet v1 without classifier; all channel counts times `width`, rounded down."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = int(STEM_CHANNELS * width)
        self.stem = ConvCell(3, channels, kernel=3, stride=2, slope=0.0)
        self.stages = nn.ModuleList()
        ends: list[int] = []
        for rows in STAGES:
            blocks: list[Separable] = []
            for out_channels, stride in rows:
                blocks.append(Separable(channels, int(out_channels * width), stride=stride))
                channels = int(out_channels * width)
            self.stages.append(nn.Sequential(*blocks))
            ends.append(channels)
        self.channels = (ends[2], ends[1], ends[0])  # of the maps that forward returns

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised -> maps at strides 32, 16, 8."""
        x = self.stem(images)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[::-1]


def width_of(channels: int) -> float:
    """The shortest decimal width that gives the deepest map `channels`; 0 if there is none."""
    full = STAGES[-1][-1][0]  # 2^10: ten digits are enough for any number of channels
    widths = (round(channels / full, digits) for digits in range(1, 11))
    return next((w for w in widths if int(full * w) == channels and int(STEM_CHANNELS * w)), 0.0)


def mobilenet(width: float = 1.0) -> MobileNet:
    """MobileNet v1 of a width: 1.0 and 0.25 are the reference's, any other works too."""
    return MobileNet(width)
