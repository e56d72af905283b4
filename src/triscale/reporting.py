"""What a run reports: records for the log, lines for the terminal, pictures for the eye."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from triscale.data.index import Index
from triscale.data.loader import load
from triscale.draw import draw_detections, draw_truth, write_picture
from triscale.evaluation import Evaluation
from triscale.log import LOSSES, Meter


def train_record(
    means: list[float], step: int, *, epoch: int, rate: float, meter: Meter
) -> dict[str, Any]:
    """A line of log.jsonl, from the mean losses since the epoch began."""
    return {
        "kind": "train",
        "step": step,
        "epoch": epoch,
        "lr": rate,
        "loss": sum(means),
        **dict(zip(LOSSES, means, strict=True)),
        "images_per_second": round(meter.images_per_second(), 2),
        "data_seconds": round(meter.data_seconds, 3),
    }


def train_line(record: dict[str, Any]) -> str:
    """A line of the log for people."""
    shown = [name for name in LOSSES if name != "iou" or record[name]]  # most recipes have none
    terms = " ".join(f"{name} {record[name]:.3f}" for name in shown)
    return (
        f"[epoch {record['epoch']}] step {record['step']} lr {record['lr']:.2e} "
        f"loss {record['loss']:.3f} ({terms}) {record['images_per_second']:.1f} img/s, "
        f"waited {record['data_seconds']:.1f} s for data"
    )


def eval_line(evaluation: Evaluation, epoch: int) -> str:
    """A validation for people."""
    line = f"[epoch {epoch}] {evaluation.headline()}"
    # a screenful; the log has them all
    if len(evaluation.per_class) > 20 or math.isnan(evaluation.mean):
        return line
    classes = ", ".join(f"{name} {ap:.3f}" for name, ap in evaluation.per_class.items())
    return f"{line} ({classes})"


def write_pictures(folder: Path, index: Index, evaluation: Evaluation, count: int) -> None:
    """Some pictures of the split, evenly spread: true boxes in white, detections in colour."""
    folder.mkdir(exist_ok=True)
    for k in range(min(count, len(index))):
        image = k * len(index) // min(count, len(index))
        sample = load(index, image)
        picture = draw_truth(sample.image, sample.boxes)
        found = evaluation.detections[image]
        picture = draw_detections(picture, found, classes=index.classes, min_score=0.3)
        write_picture(folder / f"{index.ids[image]}.jpg", picture)
