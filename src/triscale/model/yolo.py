"""The detector: images -> raw predictions (Redmon and Farhadi 2018, "YOLOv3").

A backbone and a head, the same function in training and evaluation. Nothing else lives inside the
module: no loss, no thresholds, no class names. Its state_dict is the checkpoint format, so the
attribute names here and in the layers are stable.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from triscale.anchors import STRIDES, TINY_ANCHORS, YOLO3_ANCHORS, Anchors, Grid, make_grid
from triscale.config import nearest
from triscale.errors import UserError
from triscale.model.darknet import Darknet, darknet53
from triscale.model.layers import ConvCell, Head, yolo3_head
from triscale.model.mobilenet import STEM_CHANNELS, MobileNet
from triscale.model.tiny import TinyDarknet, tiny_head
from triscale.types import Predictions

Backbone = Darknet | MobileNet | TinyDarknet

UNIFORM_RANGE = 0.07  # gluoncv: MXNet's default initialiser draws every weight from U(-0.07, 0.07)
DEPTHWISE_NOISE = 0.1  # of He et al.'s deviation, around the identity
PREDICTION_STD = 0.01  # RetinaNet (Lin et al. 2017, section 4.1), the source of the priors too
NUM_BOX_CHANNELS = 5  # t_x t_y t_w t_h t_o, before the classes


@dataclass(frozen=True)
class ModelConfig:
    """Section [model] of a recipe."""

    backbone: str = "darknet53"  # darknet53 | mobilenet<width>, as in mobilenet0.25 | tiny
    anchors: Anchors = ()  # (w, h) in pixels per stride, deepest first; empty: the backbone's own
    # how many cells a predicted centre can range over: above 1 it can lie on its cell's edges, and
    # beyond them
    scale_x_y: float = 1.0
    spp: bool = False  # spatial pyramid pooling in the head's first block, as in yolov3-spp
    # uniform: as the reference. kaiming: He et al. 2015, fan out; depthwise layers begin near the
    # identity; N(0, 0.01) in the last layer.
    init: Literal["uniform", "kaiming"] = "uniform"
    objectness_prior: float = 0.0  # initial probability of an object; 0: bias 0, as the reference
    class_prior: float = 0.0  # the same for each class

    def __post_init__(self) -> None:
        for key in ("objectness_prior", "class_prior"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(
                    f"model.{key}: expected at least 0 and less than 1, got {getattr(self, key)}"
                )
        if not 1 <= self.scale_x_y <= 3:
            raise UserError(f"model.scale_x_y: expected 1 to 3, got {self.scale_x_y}")
        if not all(0 < side < math.inf for row in self.anchors for pair in row for side in pair):
            raise UserError(f"model.anchors: expected sides above 0, got {self.anchors}")


class YOLOv3(nn.Module):
    """Normalised images (B, 3, H, W) -> Predictions; H and W need not be multiples of 32."""

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        anchors: Anchors,
        num_classes: int,
        scale_x_y: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.anchors = anchors
        self.scale_x_y = scale_x_y
        self.num_classes = num_classes

    def grid(self, size: tuple[int, int]) -> Grid:
        """Where its predictions for an input of `size` (height, width) sit, on its device."""
        device = next(self.parameters()).device
        return make_grid(self.anchors, size, scale_x_y=self.scale_x_y, device=device)

    def forward(self, images: Tensor) -> Predictions:
        maps: list[Tensor] = self.head(self.backbone(images))
        channels = NUM_BOX_CHANNELS + self.num_classes
        # (B, A * channels, h, w) -> (B, h, w, A, channels) -> (B, h * w * A, channels)
        flat = [m.permute(0, 2, 3, 1).unflatten(3, (-1, channels)).flatten(1, 3) for m in maps]
        raw = torch.cat(flat, dim=1)
        # One split: its way back joins the parts, where each slice's would fill it all with zeros.
        centres, scales, objectness, classes = raw.split([2, 2, 1, self.num_classes], dim=-1)
        return Predictions(centres, scales, objectness[..., 0], classes)


def build_model(config: ModelConfig, num_classes: int, *, generator: torch.Generator) -> YOLOv3:
    """A freshly initialised network on the CPU; all its randomness comes from `generator`."""
    model = skeleton(config, num_classes)
    model.to_empty(device="cpu")
    init_weights(model, config, generator=generator)
    return model


def skeleton(config: ModelConfig, num_classes: int) -> YOLOv3:
    """A network on the meta device: names and shapes, without memory and without weights."""
    # PyTorch's own initialisation would draw from the global generator; here it neither draws nor
    # costs time, and build_model fills every tensor afterwards.
    with torch.device("meta"):
        backbone = build_backbone(config.backbone)
        anchors = _anchors(config, len(backbone.channels))
        head = _build_head(
            backbone, [_num_outputs(row, num_classes) for row in anchors], spp=config.spp
        )
        return YOLOv3(
            backbone, head, anchors=anchors, num_classes=num_classes, scale_x_y=config.scale_x_y
        )


def same_network(model: YOLOv3, other: YOLOv3) -> bool:
    """Whether two networks have the same tensors and anchors."""
    shapes = [{k: t.shape for k, t in m.state_dict().items()} for m in (model, other)]
    return (
        shapes[0] == shapes[1]
        and model.anchors == other.anchors
        and model.scale_x_y == other.scale_x_y
    )


def build_backbone(name: str) -> Backbone:
    """The backbone called `name`; UserError if there is none."""
    if name == "darknet53":
        return darknet53()
    if name == "tiny":
        return TinyDarknet()
    width = re.fullmatch(r"mobilenet(\d{1,2}(?:\.\d{1,10})?)", name)
    if width and int(STEM_CHANNELS * float(width[1])) > 0:
        return MobileNet(float(width[1]))
    raise UserError(
        f"model.backbone: unknown network '{name}'; "
        "known are darknet53, mobilenet<width> (as in mobilenet1.0 or mobilenet0.25) and tiny"
    )


def init_weights(model: YOLOv3, config: ModelConfig, *, generator: torch.Generator) -> None:
    """Fill every parameter and buffer of a model on the CPU, in module order."""
    for module in model.modules():
        if isinstance(module, ConvCell):
            _init_conv(module.conv, config, generator, std=_he_std(module.conv, module.slope))
            if config.init == "kaiming" and module.conv.groups > 1:
                _begin_near_identity(module.conv)
            module.norm.reset_parameters()  # scale 1, shift 0, running mean 0 and variance 1
    for layer, anchors in zip(_outputs(model), model.anchors, strict=True):
        _init_output(layer, config, generator, num_anchors=len(anchors))


def reclass(
    model: YOLOv3,
    config: ModelConfig,
    *,
    old_classes: Sequence[str],
    new_classes: Sequence[str],
    generator: torch.Generator,
    reuse: Mapping[str, str] | None = None,
) -> YOLOv3:
    """A copy of `model` that predicts `new_classes`; the given model is left as it is.

    A new class starts from the weights of the old class of the same name, or of the one that
    `reuse` (new name -> old name) gives it; other classes are initialised as in a new model.
    """
    assert len(old_classes) == model.num_classes, (len(old_classes), model.num_classes)
    reuse = reuse or {}
    for new, old in reuse.items():
        if new not in new_classes:
            raise UserError(f"reuse {new}={old}: no new class '{new}'{nearest(new, new_classes)}")
        if old not in old_classes:
            raise UserError(f"reuse {new}={old}: no old class '{old}'{nearest(old, old_classes)}")
    # gluoncv: the reference throws the box and objectness rows away when no class is reused. Where
    # objects are has little to do with what they are called, so they are always kept.
    copied = [(row, row) for row in range(NUM_BOX_CHANNELS)]
    for i, name in enumerate(new_classes):
        source = reuse.get(name, name)
        if source in old_classes:
            copied.append((NUM_BOX_CHANNELS + i, NUM_BOX_CHANNELS + old_classes.index(source)))
    into, out_of = (list(rows) for rows in zip(*copied, strict=True))

    made = copy.deepcopy(model)
    made.num_classes = len(new_classes)
    for i, (layer, anchors) in enumerate(zip(_outputs(model), model.anchors, strict=True)):
        with torch.device("meta"):  # as in build_model
            fresh = nn.Conv2d(layer.in_channels, _num_outputs(anchors, len(new_classes)), 1)
        fresh.to_empty(device="cpu")
        _init_output(fresh, config, generator, num_anchors=len(anchors))
        fresh.to(layer.weight.device, layer.weight.dtype)
        with torch.no_grad():
            for new, old in zip(fresh.parameters(), layer.parameters(), strict=True):
                # (A * (5 + C), ...) -> (A, 5 + C, ...)
                rows = old.unflatten(0, (len(anchors), -1))[:, out_of]
                new.unflatten(0, (len(anchors), -1))[:, into] = rows
        made.head.outputs[i] = fresh
    return made


def _anchors(config: ModelConfig, num_strides: int) -> Anchors:
    anchors = config.anchors or (YOLO3_ANCHORS if num_strides == 3 else TINY_ANCHORS)
    if len(anchors) != num_strides or not anchors[0] or len({len(row) for row in anchors}) > 1:
        raise UserError(
            f"model.anchors: {config.backbone} needs {num_strides} lists of equally many (w, h), "
            f"for strides {', '.join(map(str, STRIDES[:num_strides]))}; got {anchors}"
        )
    return anchors


def _num_outputs(anchors: Sequence[tuple[float, float]], num_classes: int) -> int:
    return len(anchors) * (NUM_BOX_CHANNELS + num_classes)


def _build_head(backbone: Backbone, out_channels: Sequence[int], *, spp: bool) -> Head:
    if isinstance(backbone, TinyDarknet):
        if spp:
            raise UserError("model.spp: the head of YOLOv3-tiny has no place for it")
        return tiny_head(out_channels)
    # GluonCV narrows the head for mobilenet0.25 alone; here for all whose deepest map has fewer
    # channels than the wide head's first cell, that is for widths below 0.5.
    widths = (512, 256, 128) if backbone.channels[0] >= 512 else (256, 128, 128)
    return yolo3_head(backbone.channels, widths=widths, out_channels=out_channels, spp=spp)


def _outputs(model: YOLOv3) -> list[nn.Conv2d]:
    return [layer for layer in model.head.outputs if isinstance(layer, nn.Conv2d)]


def _init_conv(
    conv: nn.Conv2d, config: ModelConfig, generator: torch.Generator, *, std: float
) -> None:
    if config.init == "uniform":
        nn.init.uniform_(conv.weight, -UNIFORM_RANGE, UNIFORM_RANGE, generator=generator)
    else:
        nn.init.normal_(conv.weight, std=std, generator=generator)


def _he_std(conv: nn.Conv2d, slope: float) -> float:
    """He et al. 2015, section 2.2: keeps the variance of the gradient through a leaky ReLU."""
    # Not nn.init.kaiming_normal_: it leaves the groups out, which matters for depthwise layers.
    fan_out = conv.out_channels * math.prod(conv.kernel_size) // conv.groups
    return math.sqrt(2 / ((1 + slope**2) * fan_out))


def _begin_near_identity(conv: nn.Conv2d) -> None:
    """Put each channel's weight on the middle of its kernel (Xiao et al. 2018, delta-orthogonal).

    A dozen random filters, one after another, blur where things are, and nothing goes around them:
    what mobilenet0.25 predicted stayed at the priors for up to twelve of twenty epochs.
    """
    middle = conv.kernel_size[0] // 2
    with torch.no_grad():
        conv.weight.mul_(DEPTHWISE_NOISE)[:, 0, middle, middle] += 1


def _init_output(
    layer: nn.Conv2d, config: ModelConfig, generator: torch.Generator, *, num_anchors: int
) -> None:
    _init_conv(layer, config, generator, std=PREDICTION_STD)
    assert layer.bias is not None
    with torch.no_grad():
        bias = layer.bias.view(num_anchors, -1)  # (A, 5 + C)
        bias.zero_()
        bias[:, 4] = _logit(config.objectness_prior)
        bias[:, NUM_BOX_CHANNELS:] = _logit(config.class_prior)


def _logit(prior: float) -> float:
    """The bias that makes a sigmoid start at `prior`; 0 stands for no prior."""
    return math.log(prior / (1 - prior)) if prior else 0.0
