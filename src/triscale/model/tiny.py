"""YOLOv3-tiny, backbone and head, layer for layer as in Darknet's cfg/yolov3-tiny.cfg.

Seven 3x3 cells with max pooling between them, and predictions at strides 32 and 16 only.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from triscale.model.layers import ConvCell, DetectionBlock, Head


class SamePool(nn.Module):
    """Darknet's `size=2 stride=1` max pooling: (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        # Darknet pads one pixel at the right and bottom only. PyTorch pads on all sides, so the
        # windows that start in the left and top padding are dropped.
        return functional.max_pool2d(x, 2, stride=1, padding=1)[..., 1:, 1:]


class TinyDarknet(nn.Module):
    """The backbone of YOLOv3-tiny: two stages, which end at strides 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = (1024, 256)  # of the maps that forward returns
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    ConvCell(3, 16, kernel=3),
                    _halve(),
                    ConvCell(16, 32, kernel=3),
                    _halve(),
                    ConvCell(32, 64, kernel=3),
                    _halve(),
                    ConvCell(64, 128, kernel=3),
                    _halve(),
                    ConvCell(128, 256, kernel=3),
                ),
                nn.Sequential(
                    _halve(),
                    ConvCell(256, 512, kernel=3),
                    SamePool(),
                    ConvCell(512, 1024, kernel=3),
                ),
            ]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised -> maps at strides 32, 16."""
        shallow = self.stages[0](images)
        return [self.stages[1](shallow), shallow]


def _halve() -> nn.MaxPool2d:
    # Darknet rounds an odd side up, as the stride-2 convolutions of the larger backbones do.
    return nn.MaxPool2d(2, ceil_mode=True)


def tiny_head(out_channels: Sequence[int]) -> Head:
    """The head of YOLOv3-tiny, for strides 32 and 16."""
    deep, shallow = out_channels
    return Head(
        [
            DetectionBlock(
                nn.Sequential(ConvCell(1024, 256, kernel=1)), ConvCell(256, 512, kernel=3)
            ),
            # No cells before the tip here: the concatenated map itself is the route.
            DetectionBlock(nn.Sequential(), ConvCell(128 + 256, 256, kernel=3)),
        ],
        transitions=[ConvCell(256, 128, kernel=1)],
        outputs=[nn.Conv2d(512, deep, 1), nn.Conv2d(256, shallow, 1)],
    )
