"""What a run reports: records for the log, lines for the terminal, pictures for the eye."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triscale.data.index import Index
from triscale.data.loader import load
from triscale.draw import draw_detections, draw_truth, write_picture
from triscale.evaluation import Evaluation
from triscale.log import LOSSES, Meter, duration


def train_record(
    means: list[float], step: int, *, epoch: int, rate: float, meter: Meter, memory: float = 0.0
) -> dict[str, Any]:
    """A line of log.jsonl, from the mean losses since the epoch began; `memory` is a GPU's."""
    return {
        "kind": "train",
        "step": step,
        "epoch": epoch,
        "lr": rate,
        "loss": sum(means),
        **dict(zip(LOSSES, means, strict=True)),
        "images_per_second": round(meter.images_per_second(), 2),
        "data_seconds": round(meter.data_seconds, 3),
        **({"gpu_gib": round(memory, 2)} if memory else {}),
    }


def train_line(record: Mapping[str, Any], *, left: float) -> str:
    """A record as a line, for people and for programs that read what people read."""
    terms = _terms([record[name] for name in LOSSES])
    return (
        f"[epoch {record['epoch']}] step {record['step']} lr {record['lr']:.2e} "
        f"loss {record['loss']:.3f} ({terms}) {record['images_per_second']:.1f} img/s, "
        f"waited {record['data_seconds']:.1f} s for data"
        f"{f', GPU {memory:.1f} GiB' if (memory := record.get('gpu_gib')) else ''}"
        f", {duration(left)} left"
    )


def epoch_line(record: Mapping[str, Any]) -> str:
    """The last record of an epoch, for a terminal of 80 columns that shows the rest itself."""
    return (
        f"[epoch {record['epoch']}] step {record['step']} loss {record['loss']:.3f}, "
        f"lr {record['lr']:.2e}, {record['images_per_second']:.1f} img/s"
    )


def step_line(losses: Sequence[float], step: int, *, side: tuple[int, int], ok: bool) -> str:
    """A single step's own losses."""
    skipped = "" if ok else ", skipped"
    return f"step {step} at {side[1]}x{side[0]}: loss {sum(losses):.3f} ({_terms(losses)}){skipped}"


def live_lines(
    meter: Meter, *, rate: float, memory: tuple[float, float], best: str, last: Evaluation | None
) -> list[str]:
    """What stands below the bars, each line within 80 columns; `memory` is used, there (GiB)."""
    lines: list[str] = []
    if losses := meter.losses():
        lines.append(f"loss {sum(losses):.3f}: {_terms(losses, between=', ')}")
    used, there = memory
    on_gpu = f"   GPU {used:.1f} of {there:.1f} GiB" if there else ""
    lines.append(
        f"lr {rate:.2e}   {meter.images_per_second():.1f} img/s   "
        f"waiting for data {meter.recent().share:.0%}{on_gpu}"
    )
    epoch, _, value = best.partition(":\t")  # a line of best_map.log
    if value:
        newest = f"{last.headline()}   " if last else ""
        lines.append(f"{newest}best mAP {value} (epoch {int(epoch)})")
    return lines


def _terms(losses: Sequence[float], *, between: str = " ") -> str:
    named = zip(LOSSES, losses, strict=True)
    # most recipes have no iou
    return between.join(f"{name} {value:.3f}" for name, value in named if name != "iou" or value)


def eval_line(evaluation: Evaluation, epoch: int) -> str:
    """A validation for people."""
    line = f"[epoch {epoch}] {evaluation.headline()}"
    # a screenful; the log has them all
    if len(evaluation.per_class) > 20 or math.isnan(evaluation.mean):
        return line
    classes = ", ".join(f"{name} {ap:.3f}" for name, ap in evaluation.per_class.items())
    return f"{line} ({classes})"


def write_pictures(folder: Path, index: Index, evaluation: Evaluation, count: int) -> list[Path]:
    """Some pictures of the split, evenly spread: true boxes in white, detections in colour."""
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    for k in range(min(count, len(index))):
        image = k * len(index) // min(count, len(index))
        sample = load(index, image)
        picture = draw_truth(sample.image, sample.boxes)
        found = evaluation.detections[image]
        picture = draw_detections(picture, found, classes=index.classes, min_score=0.3)
        paths.append(folder / f"{index.ids[image]}.jpg")
        write_picture(paths[-1], picture)
    return paths
