"""Our networks, layer by layer, in Darknet's terms.

`layers` walks a network and says what Darknet calls each part. The list serves three ends: it is
the order of the numbers in a `.weights` file, a given .cfg is compared with it, and a .cfg is
written from it. Source: cfg/yolov3.cfg, yolov3-voc.cfg, yolov3-spp.cfg, yolov3-tiny.cfg and
darknet53.cfg of Darknet (public domain).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from torch import nn

from triscale.errors import UserError
from triscale.model.darknet import Darknet, Residual
from triscale.model.layers import ConvCell, DetectionBlock, SpatialPyramid
from triscale.model.mobilenet import MobileNet
from triscale.model.tiny import SamePool
from triscale.model.yolo import Backbone, ModelConfig, YOLOv3, skeleton
from triscale.pixels import Fit

Names = dict[nn.Module, str]

NETWORKS: Mapping[str, ModelConfig] = {
    "yolov3": ModelConfig(),
    "yolov3-spp": ModelConfig(spp=True),
    "yolov3-tiny": ModelConfig(backbone="tiny"),
}


class Section(NamedTuple):
    """One layer as a .cfg describes it, and what a convolution is called in our network."""

    kind: str
    keys: Mapping[str, Any]
    name: str = ""  # of the cell or output layer; "" for what we don't have
    in_channels: int = 0

    @property
    def normalised(self) -> bool:
        return "batch_normalize" in self.keys

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a convolution's tensors, in the order of a .weights file."""
        out, size = self.keys["filters"], self.keys["size"]
        kernel = (out, self.in_channels, size, size)
        if not self.normalised:
            return {f"{self.name}.bias": (out,), f"{self.name}.weight": kernel}
        leaves = ("bias", "weight", "running_mean", "running_var")
        norm = {f"{self.name}.norm.{leaf}": (out,) for leaf in leaves}
        return {**norm, f"{self.name}.conv.weight": kernel}

    @property
    def num_floats(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())


class Network(NamedTuple):
    """What a .cfg describes."""

    model: ModelConfig
    num_classes: int  # 0: the classifier, of which the backbone is ours
    sections: Sequence[Section]
    size: int = 416
    fit: Fit = "letterbox"

    @property
    def convolutions(self) -> list[Section]:
        return [section for section in self.sections if section.kind == "convolutional"]


@lru_cache(maxsize=16)  # a skeleton takes 20 ms, and several are tried before one fits
def layers(config: ModelConfig, num_classes: int) -> tuple[Section, ...]:
    """The sections of our network, in order, without [net]. UserError if Darknet hasn't it."""
    model = skeleton(config, num_classes)
    names: Names = {module: name for name, module in model.named_modules()}
    sections, ends = _backbone(model.backbone, names)
    head = model.head
    for i, (block, output) in enumerate(zip(head.blocks, head.outputs, strict=True)):
        assert isinstance(block, DetectionBlock)
        assert isinstance(output, nn.Conv2d)
        if i > 0:  # on from the cell before the tip of the stride before
            sections += [
                Section("route", {"layers": (-4,)}),
                _cell(head.transitions[i - 1], names),
                Section("upsample", {"stride": 2}),
                Section("route", {"layers": (-1, ends[i])}),
            ]
        for module in [*block.body.children(), block.tip]:
            pyramid = isinstance(module, SpatialPyramid)
            sections += _pyramid() if pyramid else [_cell(module, names)]
        sections.append(_convolution(output, names[output], {"activation": "linear"}))
        sections.append(_yolo(model, i, num_classes))
    return tuple(sections)


@lru_cache(maxsize=1)
def classifier() -> tuple[Section, ...]:
    """Darknet-53 as it is trained on ImageNet, down to its last convolution."""
    model = skeleton(ModelConfig(), 1)
    names: Names = {module: name for name, module in model.named_modules()}
    sections, _ = _backbone(model.backbone, names)
    keys = {"filters": 1000, "size": 1, "stride": 1, "pad": 1, "activation": "linear"}
    last = Section("convolutional", keys, in_channels=model.backbone.channels[0])
    return (*sections, Section("avgpool", {}), last)


def _backbone(backbone: Backbone, names: Names) -> tuple[list[Section], list[int]]:
    """Its sections, and the layers where its stages end, deepest first."""
    if isinstance(backbone, MobileNet):
        raise UserError("Darknet has no YOLOv3 on MobileNet; it has darknet53 and tiny")
    sections = [_cell(backbone.stem, names)] if isinstance(backbone, Darknet) else []
    ends: list[int] = []
    for stage in backbone.stages:
        assert isinstance(stage, nn.Sequential)
        for module in stage.children():
            if isinstance(module, Residual):
                sections += [_cell(module.reduce, names), _cell(module.expand, names)]
                sections.append(Section("shortcut", {"from": (-3,), "activation": "linear"}))
            elif isinstance(module, (nn.MaxPool2d, SamePool)):
                sections.append(_maxpool(2, stride=1 if isinstance(module, SamePool) else 2))
            else:
                sections.append(_cell(module, names))
        ends.append(len(sections) - 1)
    return sections, ends[::-1]


def _pyramid() -> Iterator[Section]:
    yield _maxpool(5, stride=1)
    yield Section("route", {"layers": (-2,)})
    yield _maxpool(9, stride=1)
    yield Section("route", {"layers": (-4,)})
    yield _maxpool(13, stride=1)
    yield Section("route", {"layers": (-1, -3, -5, -6)})


def _maxpool(size: int, *, stride: int) -> Section:
    return Section("maxpool", {"size": size, "stride": stride})


def _cell(cell: nn.Module, names: Names) -> Section:
    assert isinstance(cell, ConvCell)
    return _convolution(cell.conv, names[cell], {"batch_normalize": 1, "activation": "leaky"})


def _convolution(conv: nn.Conv2d, name: str, keys: Mapping[str, Any]) -> Section:
    shape = {"filters": conv.out_channels, "size": conv.kernel_size[0], "stride": conv.stride[0]}
    return Section("convolutional", {**keys, **shape, "pad": 1}, name, conv.in_channels)


def _yolo(model: YOLOv3, i: int, num_classes: int) -> Section:
    """The output of stride number i, deepest first; Darknet lists the anchors finest first."""
    anchors = model.anchors
    count = len(anchors[i])
    first = (len(anchors) - 1 - i) * count
    pairs = [f"{_number(w)},{_number(h)}" for row in anchors[::-1] for w, h in row]
    keys: dict[str, Any] = {
        "mask": tuple(range(first, first + count)),
        "anchors": ",  ".join(pairs),
        "classes": num_classes,
        "num": len(pairs),
    }
    if model.scale_x_y != 1:
        keys["scale_x_y"] = model.scale_x_y
    return Section("yolo", keys)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
