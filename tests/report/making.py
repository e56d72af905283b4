"""Validations and run folders for the tests of the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from triscale.data.index import Index, PackedStrings
from triscale.detections import Detections
from triscale.recipe import Recipe, dump_recipe
from triscale.report.found import BEST, Found, save_found

Box = tuple[float, float, float, float, int]  # x1, y1, x2, y2, class
FAR = (300.0, 300.0, 340.0, 340.0)  # where no object is


def make_index(
    objects: list[list[Box]], *, classes: int = 2, paths: list[str] | None = None
) -> Index:
    """Pictures of 640x480 with these objects, one list for each."""
    flat = np.array([box for boxes in objects for box in boxes], np.float32).reshape(-1, 5)
    none = np.zeros(len(flat), np.bool_)
    return Index(
        name="val",
        classes=tuple(f"class {c}" for c in range(classes)),
        paths=PackedStrings(paths or [f"/nowhere/{i}.jpg" for i in range(len(objects))]),
        ids=PackedStrings(map(str, range(len(objects)))),
        sizes=np.full((len(objects), 2), (480, 640), np.int32),
        offsets=np.cumsum([0, *map(len, objects)]),
        boxes=flat[:, :4],
        labels=flat[:, 4].astype(np.int32),
        difficult=none,
        crowd=none,
        areas=(flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1]),
    )


def detections(*rows: tuple[Box, float]) -> Detections:
    """A picture's detections, best first."""
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 5)
    scores = np.array([score for _, score in rows], np.float32)
    return Detections(boxes[:, :4], scores, boxes[:, 4].astype(np.int64))


def make_found(index: Index, found: list[Detections], **about: Any) -> Found:
    """A validation after step 100."""
    per_class = dict.fromkeys(index.classes, 0.5)
    return Found(
        {"step": 100, "epoch": 9, "metric": "voc", "mAP": 0.5, "per_class": per_class, **about},
        index,
        found,
    )


def train_record(epoch: int, **values: Any) -> dict[str, Any]:
    """Ten steps of an epoch, a second each if the batch is of eight pictures."""
    record = {"kind": "train", "step": 10 * (epoch + 1), "epoch": epoch, "lr": 0.001, "loss": 9.0}
    return record | {"objectness": 9.0, "images_per_second": 8.0, "data_seconds": 0.5} | values


def eval_record(epoch: int, score: float | None) -> dict[str, Any]:
    return {
        "kind": "eval",
        "epoch": epoch,
        "step": 10 * (epoch + 1),
        "metrics": {"mAP": score, "AP/class 0": score, "AP/class 1": None},
    }


def make_run(folder: Path, records: list[dict[str, Any]], found: Found | None = None) -> Path:
    """A run folder of ten epochs with batches of eight."""
    folder.mkdir(parents=True)
    recipe = Recipe()
    recipe = replace(recipe, train=replace(recipe.train, epochs=10, batch_size=8))
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    if found:
        save_found(folder / BEST, found)
    return folder
