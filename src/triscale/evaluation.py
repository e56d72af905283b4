"""Validation: every picture once, boxes back in original pixels, one metric at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from triscale.data.augment import AugmentConfig
from triscale.data.decoded import DecodedPictures
from triscale.data.index import Index
from triscale.data.loader import make_loader
from triscale.data.plan import validation_draws
from triscale.decode import DecodeConfig, Decoded, detect, detections
from triscale.detections import Detections
from triscale.distributed import Processes, gather_interleaved
from triscale.errors import UserError
from triscale.metrics.coco import coco_ap
from triscale.metrics.voc import PackedTruth, pack_detections, voc_ap
from triscale.model.yolo import YOLOv3
from triscale.normalise import network_input
from triscale.pixels import InputConfig

Metric = Literal["voc07", "voc", "coco"]


@dataclass(frozen=True)
class EvalConfig:
    """The `[evaluate]` section."""

    metric: Literal["auto", "voc07", "voc", "coco"] = "auto"  # auto: coco for COCO data, else voc07
    iou: float = 0.5  # VOC metrics: least overlap with the object
    network_resolution: bool = False  # the reference's way: measured after the resize, +1 pixel

    def __post_init__(self) -> None:
        if not 0 < self.iou < 1:
            raise UserError(f"evaluate.iou: expected between 0 and 1, got {self.iou}")

    def require_fit(self, input_config: InputConfig) -> None:
        """UserError if the reference's way is asked for, but pictures aren't stretched."""
        if self.network_resolution and input_config.fit != "stretch":
            raise UserError(
                f"evaluate.network_resolution: needs input.fit=stretch, found {input_config.fit}"
            )


class Evaluation(NamedTuple):
    """The result over an index."""

    metric: Metric
    mean: float  # mAP (COCO: AP at IoU .50:.95), in 0..1; nan if there is no object to find
    per_class: dict[str, float]  # AP by class name; nan for classes without objects
    numbers: dict[str, float]  # COCO: the twelve numbers; else empty
    images: int
    detections: list[Detections]  # per image of the index, best first, original pixels

    def headline(self) -> str:
        """The metric in a few words."""
        if math.isnan(self.mean):
            return f"{self.metric} mAP: no object to find"
        return f"{self.metric} mAP {self.mean:.4f}"

    def metrics(self) -> dict[str, float | None]:
        """As logged: mAP, COCO's numbers, AP/<class>; None where there is nothing to measure."""
        named = {f"AP/{name}": value for name, value in self.per_class.items()}
        return {k: _finite(v) for k, v in ({"mAP": self.mean} | self.numbers | named).items()}

    def to_json(self) -> dict[str, Any]:
        """The object that `triscale eval --json` prints."""
        return {
            "metric": self.metric,
            "mAP": _finite(self.mean),
            **{k: _finite(v) for k, v in self.numbers.items()},
            "per_class": {k: _finite(v) for k, v in self.per_class.items()},
            "images": self.images,
        }


def choose_metric(wanted: str, data_format: str) -> Metric:
    """The metric for a data set of a format; `auto` follows the format."""
    if wanted == "auto":
        return "coco" if data_format == "coco" else "voc07"
    for metric in ("voc07", "voc", "coco"):
        if wanted == metric:
            return metric
    raise UserError(f"metric: expected voc07, voc or coco, got '{wanted}'")


def evaluate(
    model: YOLOv3,
    index: Index,
    *,
    size: int,
    input_config: InputConfig,
    metric: Metric = "voc07",
    config: EvalConfig | None = None,
    decode: DecodeConfig | None = None,
    batch_size: int = 8,
    workers: int = 0,
    decoded: DecodedPictures | None = None,
    device: torch.device | None = None,
    processes: Processes | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """The AP of `model` on `index` with pictures fitted into `size` x `size`.

    `input_config` is what the model was trained with, as its weights' header says.
    The model is left in the mode it was in. With several processes each takes its share of the
    pictures and all get the same result. Raises UserError if a picture can't be read.
    """
    config = config or EvalConfig()
    config.require_fit(input_config)
    found = detect_all(
        model,
        index,
        size=size,
        decode=decode or DecodeConfig(),
        input_config=input_config,
        batch_size=batch_size,
        workers=workers,
        decoded=decoded,
        device=device or next(model.parameters()).device,
        processes=processes or Processes(),
        on_batch=on_batch or (lambda: None),
    )
    return score(found, index, size=size, metric=metric, config=config)


def detect_all(
    model: YOLOv3,
    index: Index,
    *,
    size: int,
    decode: DecodeConfig,
    input_config: InputConfig,
    batch_size: int,
    workers: int,
    decoded: DecodedPictures | None,
    device: torch.device,
    processes: Processes,
    on_batch: Callable[[], None],
) -> list[Detections]:
    """The detections of every picture of `index`, in order, in original pixels."""
    rank, world_size = processes
    draws = validation_draws(
        len(index), size, batch_size=batch_size, rank=rank, world_size=world_size
    )
    grid = model.grid((size, size))
    rows = (0, decode.num_rows)  # a process may have no picture at all
    batches = [
        Decoded(
            torch.empty(*rows, 4, device=device),
            torch.empty(rows, device=device),
            torch.empty(rows, dtype=torch.int64, device=device),
        )
    ]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            loader = make_loader(
                index,
                draws,
                config=AugmentConfig(),
                workers=workers,
                fit=input_config.fit,
                decoded=decoded,
            )
            for batch in loader:
                images = network_input(batch.to(device), input_config)
                batches.append(detect(model(images), grid, decode))
                on_batch()
    finally:
        model.train(was_training)
    share = Decoded(*(torch.cat(fields) for fields in zip(*batches, strict=True)))
    every = Decoded(*(gather_interleaved(field, len(index), processes) for field in share))
    sizes = torch.from_numpy(index.sizes)
    return detections(every, (size, size), original_sizes=sizes, fit=input_config.fit)


def packed_truth(index: Index) -> PackedTruth:
    """The objects of an index; a picture's number is its position."""
    return PackedTruth(
        images=np.repeat(np.arange(len(index)), np.diff(index.offsets)),
        boxes=index.boxes,
        labels=index.labels,
        difficult=index.difficult,
        crowd=index.crowd,
        areas=index.areas,
    )


def score(
    found: list[Detections], index: Index, *, size: int, metric: Metric, config: EvalConfig
) -> Evaluation:
    """The metric of detections in original pixels, one entry per image of `index`."""
    packed = pack_detections(found, range(len(index)))
    truth = packed_truth(index)
    inclusive = index.inclusive
    if config.network_resolution:
        # gluoncv: boxes are compared after the resize, where a pixel more is a different pixel.
        scale = (size / index.sizes[:, [1, 0, 1, 0]]).astype(np.float32)  # (n, 4)
        packed = packed._replace(boxes=packed.boxes * scale[packed.images])
        truth = truth._replace(boxes=truth.boxes * scale[truth.images])
        inclusive = True
    names = index.classes
    if metric == "coco":
        coco = coco_ap(packed, truth, num_classes=len(names), inclusive=inclusive)
        mean, per_class, numbers = coco.summary["AP"], coco.per_class, coco.summary
    else:
        voc = voc_ap(
            packed,
            truth,
            num_classes=len(names),
            iou_threshold=config.iou,
            use_07=metric == "voc07",
            inclusive=inclusive,
        )
        mean, per_class, numbers = voc.mean, voc.per_class, {}
    by_name = dict(zip(names, per_class.tolist(), strict=True))
    return Evaluation(metric, mean, by_name, numbers, len(index), found)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
