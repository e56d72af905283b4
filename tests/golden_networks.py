"""The networks behind the golden arrays, and the way of a training step through our functions.

A network of the golden arrays needs no weight file: the reference filled each tensor by a recipe
from its name, `golden/recipe.py`, which makes the input images too.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triscale.anchors import YOLO3_ANCHORS, make_grid
from triscale.assign import assign, ignored
from triscale.decode import decode_boxes
from triscale.loss import LossConfig, yolo_loss
from triscale.model.darknet import Darknet
from triscale.model.layers import yolo3_head
from triscale.model.yolo import ModelConfig, YOLOv3, build_model
from triscale.types import Predictions, Targets
from triscale.weights.gluoncv_names import gluoncv_names


def tiny_golden() -> YOLOv3:
    """The small Darknet that the golden arrays call `tiny` (not Darknet's yolov3-tiny)."""
    backbone = Darknet(layers=(1, 1, 1, 1, 1), channels=(4, 8, 16, 24, 32, 48))
    head = yolo3_head(backbone.channels, widths=(16, 12, 8), out_channels=(30, 30, 30))
    return YOLOv3(backbone, head, anchors=YOLO3_ANCHORS, num_classes=5)


@lru_cache(maxsize=1)
def recipe(golden: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", golden / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def reference_names(golden: Path) -> dict[str, dict]:
    return json.loads(gzip.decompress((golden / "param_names.json.gz").read_bytes()))


def fill(model: YOLOv3, value: Callable[[str, tuple[int, ...]], NDArray[np.float32]]) -> YOLOv3:
    """`model` in evaluation mode, each tensor filled by the reference's name for it."""
    names = gluoncv_names(model)
    state = {
        key: torch.from_numpy(value(names[key], tuple(tensor.shape)))
        for key, tensor in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert not unexpected
    return model.eval()


@lru_cache(maxsize=1)  # the tests ask for one network after the other
def golden_model(golden: Path, network: str) -> YOLOv3:
    """`network` with the weights that the reference had when it made the golden arrays."""
    if network == "tiny":
        model = tiny_golden()
    else:
        model = build_model(ModelConfig(backbone=network), 20, generator=torch.Generator())
    gain = recipe(golden).PRED_GAIN[network]
    return fill(model, lambda name, shape: recipe(golden).value(name, shape, gain))


def golden_images(golden: Path, seed_shape: np.ndarray) -> Tensor:
    seed, *shape = (int(v) for v in seed_shape)
    return torch.from_numpy(recipe(golden).image(seed, tuple(shape)))


def losses_per_image(
    model: YOLOv3, images: Tensor, objects: Tensor, *, weights: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """The losses (4, B) of each image, and which predictions (B, N) are no negatives by overlap.

    `objects` (B, M, 5) xyxy and class, padded with -1; `weights` (B, M) the mixup ratios.
    """
    size = images.shape[2], images.shape[3]
    grid = make_grid(model.anchors, size)
    boxes, labels = objects[..., :4].float(), objects[..., 4].long()
    predictions = model(images)
    targets = assign(boxes, labels, weights, grid, size=size)
    with torch.no_grad():
        decoded = decode_boxes(predictions, grid)
    ignore = ignored(decoded, boxes, labels, threshold=config.ignore_iou)
    columns: list[Tensor] = []
    for i in range(len(images)):
        losses = yolo_loss(
            Predictions(*(field[i : i + 1] for field in predictions)),
            Targets(*(field[i : i + 1] for field in targets)),
            ignore[i : i + 1],
            grid,
            config,
        )
        columns.append(torch.stack(losses[:4]))
    image, row = (targets.weight > 0).nonzero(as_tuple=True)
    ignore[image, targets.slot[image, row]] = False  # positives aren't ignored
    return torch.stack(columns, 1), ignore
