"""What GluonCV calls our tensors, so that its `.params` files can be read and written.

GluonCV numbers the layers of one flat feature extractor, cut into three `stages` at strides 8, 16
and 32. Its Darknet cell is a pair (0: convolution, 1: normalisation); its MobileNet is flat: layers
3k, 3k + 1 and 3k + 2 are the k-th convolution, its normalisation and its ReLU.

Three spellings of the names exist. `save_parameters` writes the structure (`stages.0.0.0.weight`;
in a backbone alone, whose layers aren't cut into stages, `features.0.0.weight`). The older
`collect_params().save` writes a scope and a number per scope and kind of layer
(`darknetv30_conv0_weight`, `yolov30_yolooutputv31_conv0_bias`). `export` puts `arg:` or `aux:`
before that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import nn

from triscale.anchors import YOLO3_ANCHORS
from triscale.errors import UserError
from triscale.model.darknet import Darknet
from triscale.model.layers import SpatialPyramid
from triscale.model.mobilenet import MobileNet
from triscale.model.yolo import YOLOv3

# the layers of GluonCV's `features` that its stages begin with
CUTS = {"darknet53": (0, 15, 24), "mobilenet1.0": (0, 33, 69)}
# a parameter's scopes and its own name, as in yolov30_yolodetectionblockv32_conv5_weight
_SCOPED = re.compile(
    r"(?:([^.]*)_)?((?:conv|batchnorm|dense)\d+_[a-z_]+|(?:anchor|offset)_\d+)", re.ASCII
)
_SCOPE = re.compile(r"(?:.*_)?(yolov3|yolodetectionblockv3|yolooutputv3)(\d+)", re.ASCII)
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
    if model.scale_x_y != 1:  # its boxes would lie elsewhere
        raise UserError(
            "expected a network that GluonCV has too, found one trained with "
            f"model.scale_x_y={model.scale_x_y:g}"
        )
    if any(isinstance(module, SpatialPyramid) for module in model.modules()):
        raise UserError("expected a network that GluonCV has too, found YOLOv3-spp")
    if isinstance(model.backbone, Darknet):
        backbone = _darknet_cells(model.backbone)
    elif isinstance(model.backbone, MobileNet):
        backbone = _mobilenet_cells(model.backbone)
    else:
        raise UserError("expected a network that GluonCV has too, found YOLOv3-tiny")
    names: dict[str, str] = {}
    for cell in [*backbone, *_head_cells(model)]:
        names[f"{cell.ours}.conv.weight"] = f"{cell.conv}.weight"
        for ours, theirs in NORM_NAMES.items():
            names[f"{cell.ours}.norm.{ours}"] = f"{cell.norm}.{theirs}"
    for i in range(len(model.head.outputs)):
        for leaf in ("weight", "bias"):
            names[f"head.outputs.{i}.{leaf}"] = f"yolo_outputs.{i}.prediction.{leaf}"
    return names


def reference_keys(model: YOLOv3, *, bare: bool) -> dict[str, str]:
    """Structural name -> our key, in the reference's order, of the network or of its backbone."""
    pairs = sorted(gluoncv_names(model).items(), key=lambda pair: pair[1].partition(".")[0])
    return {name: key for key, name in pairs if not bare or key.startswith("backbone.")}


def flat_name(name: str, backbone: str) -> str:
    """What `stages.<i>.<k>...` is called where the layers are one list `features`."""
    first, *rest = name.split(".")
    if first != "stages":
        return name
    cut = CUTS["darknet53" if backbone == "darknet53" else "mobilenet1.0"][int(rest[0])]
    return ".".join(["features", str(cut + int(rest[1])), *rest[2:]])


def spellings(names: Iterable[str], backbone: str) -> dict[str, str]:
    """Each spelling of a network's names, as `spelling` gives it -> the structural name.

    A scoped name is a part of the network and a number: `transitions.1.0.weight` is the second
    convolution under the scope `yolov30`, so `transitions conv1_weight` stands for it.
    """
    table: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in names:
        first, second, *_, leaf = name.split(".")
        part = first if first in ("stages", "transitions") else f"{first}.{second}"
        kind = "conv" if leaf in ("weight", "bias") else "batchnorm"
        table |= {name: name, flat_name(name, backbone): name}
        table[f"{part} {kind}{counts[part + leaf]}_{leaf}"] = name
        counts[part + leaf] += 1
    for i in range(len(YOLO3_ANCHORS)):
        for leaf in ("anchors", "offsets"):
            name = f"yolo_outputs.{i}.{leaf}"
            table |= {name: name, f"yolo_outputs.{i} {leaf[:-1]}_{i}": name}
    for leaf in ("weight", "bias"):
        table |= {f"output.{leaf}": f"output.{leaf}", f"stages dense0_{leaf}": f"output.{leaf}"}
    return table


def spelling(name: str) -> str:
    """A name without `arg:` or `aux:`; a scoped name as its part of the network and its number.

    `arg:yolov30_conv1_weight` becomes `transitions conv1_weight`, and a name under any other
    scope, which is called after the backbone, `stages conv1_weight`.
    """
    name = name.removeprefix("arg:").removeprefix("aux:")
    scoped = _SCOPED.fullmatch(name)
    if scoped is None:
        return name
    scope = _SCOPE.fullmatch(scoped[1] or "")
    part = "stages"
    if scope is not None:
        parts = {
            "yolov3": "transitions",
            "yolodetectionblockv3": f"yolo_blocks.{scope[2]}",
            "yolooutputv3": f"yolo_outputs.{scope[2]}",
        }
        part = parts[scope[1]]
    return f"{part} {scoped[2]}"


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
