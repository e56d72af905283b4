"""Darknet-53, the backbone of YOLOv3 (Redmon and Farhadi 2018, section 2.4 and table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from triscale.model.layers import ConvCell


class Residual(nn.Module):
    """x + 3x3(1x1(x)) with half the channels in between; no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvCell(channels, channels // 2, kernel=1)
        self.expand = ConvCell(channels // 2, channels, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.reduce(x))


class Darknet(nn.Module):
    """A 3x3 stem, then five stages, each a stride-2 cell and `layers[i]` residual blocks.

    `channels` has the stem's width and the five stages'.
    """

    def __init__(self, layers: tuple[int, ...], channels: tuple[int, ...]) -> None:
        super().__init__()
        assert len(layers) == 5, layers
        assert len(channels) == 6, channels
        self.layers = layers
        self.channels = (channels[5], channels[4], channels[3])  # of the maps that forward returns
        self.stem = ConvCell(3, channels[0], kernel=3)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvCell(channels[i], channels[i + 1], kernel=3, stride=2),
                *(Residual(channels[i + 1]) for _ in range(count)),
            )
            for i, count in enumerate(layers)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised -> maps at strides 32, 16, 8."""
        x = self.stem(images)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[4], maps[3], maps[2]]


def darknet53() -> Darknet:
    """The network of the paper: 52 convolutions and, there, a classifier."""
    return Darknet(layers=(1, 2, 8, 8, 4), channels=(32, 64, 128, 256, 512, 1024))
