"""What GluonCV calls our tensors, so that its `.params` files can be read and written.

GluonCV numbers the layers of one flat feature extractor, cut into three `stages` at strides 8, 16
and 32. Its Darknet cell is a pair (0: convolution, 1: normalisation); its MobileNet is flat: layers
3k, 3k + 1 and 3k + 2 are the k-th convolution, its normalisation and its ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from triscale.errors import UserError
from triscale.model.darknet import Darknet
from triscale.model.mobilenet import MobileNet
from triscale.model.yolo import YOLOv3

NORM_NAMES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "running_mean",
    "running_var": "running_var",
}


class CellName(NamedTuple):
    """One convolution cell: our module, and GluonCV's two."""

    ours: str
    conv: str
    norm: str


def gluoncv_names(model: YOLOv3) -> dict[str, str]:
    """state_dict key -> GluonCV's structural name, for every tensor that both sides have.

    Left out are our `num_batches_tracked` and GluonCV's constants `yolo_outputs.*.anchors` and
    `.offsets`. Raises UserError for a network that GluonCV doesn't have.
    """
    if isinstance(model.backbone, Darknet):
        backbone = _darknet_cells(model.backbone)
    elif isinstance(model.backbone, MobileNet):
        backbone = _mobilenet_cells(model.backbone)
    else:
        raise UserError("GluonCV has no YOLOv3-tiny; its weights fit darknet53 and mobilenet only")
    names: dict[str, str] = {}
    for cell in [*backbone, *_head_cells(model)]:
        names[f"{cell.ours}.conv.weight"] = f"{cell.conv}.weight"
        for ours, theirs in NORM_NAMES.items():
            names[f"{cell.ours}.norm.{ours}"] = f"{cell.norm}.{theirs}"
    for i in range(len(model.head.outputs)):
        for leaf in ("weight", "bias"):
            names[f"head.outputs.{i}.{leaf}"] = f"yolo_outputs.{i}.prediction.{leaf}"
    return names


def _pair(ours: str, theirs: str) -> CellName:
    return CellName(ours, f"{theirs}.0", f"{theirs}.1")


def _darknet_cells(backbone: Darknet) -> Iterator[CellName]:
    yield _pair("backbone.stem", "stages.0.0")
    position = 1  # in GluonCV's stage; its first one holds the stem and our stages 0, 1 and 2
    for i, count in enumerate(backbone.layers):
        stage = max(i - 2, 0)
        if stage > 0:
            position = 0
        yield _pair(f"backbone.stages.{i}.0", f"stages.{stage}.{position}")
        for block in range(1, count + 1):
            ours, theirs = f"backbone.stages.{i}.{block}", f"stages.{stage}.{position + block}"
            yield _pair(f"{ours}.reduce", f"{theirs}.body.0")
            yield _pair(f"{ours}.expand", f"{theirs}.body.1")
        position += 1 + count


def _mobilenet_cells(backbone: MobileNet) -> Iterator[CellName]:
    for i, stage in enumerate(backbone.stages):
        assert isinstance(stage, nn.Sequential)
        cells = ["backbone.stem"] if i == 0 else []
        for block in range(len(stage)):
            cells += [f"backbone.stages.{i}.{block}.{part}" for part in ("depthwise", "pointwise")]
        for k, ours in enumerate(cells):
            yield CellName(ours, f"stages.{i}.{3 * k}", f"stages.{i}.{3 * k + 1}")


def _head_cells(model: YOLOv3) -> Iterator[CellName]:
    for i in range(len(model.head.blocks)):
        for k in range(5):
            yield _pair(f"head.blocks.{i}.body.{k}", f"yolo_blocks.{i}.body.{k}")
        yield _pair(f"head.blocks.{i}.tip", f"yolo_blocks.{i}.tip")
    for i in range(len(model.head.transitions)):
        yield _pair(f"head.transitions.{i}", f"transitions.{i}")
