"""An exported file beside the network it was made from: on pictures, and with labels by mAP."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from triscale.config import build
from triscale.detections import Detections
from triscale.engines.header import Header, Run, run_in_batches, run_whole, unpacked
from triscale.engines.pytorch import TorchEngine
from triscale.errors import UserError
from triscale.evaluation import EvalConfig, choose_metric, score
from triscale.export.parity import TOLERANCES, Tolerance, compare
from triscale.export.pictures import Pictures, with_bars
from triscale.log import Narrator
from triscale.predict import prepare, read_pixels
from triscale.types import Predictions

BATCH = 8  # pictures at once
Row = tuple[str, float, float]  # what was compared, how much differs, how much may


class Outcome(NamedTuple):
    """What was compared, and how it came out."""

    pictures: int
    detections: int  # of the network
    words: str  # the pictures
    rows: list[Row]
    means: tuple[float, float] | None = None  # mAP of the network and of the file

    def require(self, target: Path) -> None:
        """UserError if something differs by more than it may."""
        for what, found, most in self.rows:
            if not found <= most:
                raise UserError(
                    f"{target}: doesn't find what the network finds: {what} {found:.4g}, expected "
                    f"at most {most:.4g}; nothing was written"
                )


def compared(
    engine: TorchEngine, run: Run, *, header: Header, pictures: Pictures, narrator: Narrator
) -> Outcome:
    """What both find in the pictures, beside each other."""
    expected, found = list[Detections](), list[Detections]()
    scales = list[float]()
    furthest = 0.0
    narrator.begin("comparing", len(pictures.images))
    for start in range(0, len(pictures.images), BATCH):
        pixels = [read_pixels(image) for image in pictures.images[start : start + BATCH]]
        images, sizes = prepare(pixels, engine.size, fit=engine.fit)
        scales += (np.array(engine.size) / sizes).max(1).tolist()
        if header.raw:
            images = with_bars(images, sizes, fit=engine.fit)
            whole = np.tile(np.array(engine.size, np.int64), (len(images), 1))
            one = engine.predictions(images, whole)
            two = run_in_batches(run, header, {"images": images})["predictions"]
            flat = np.concatenate([f.reshape(*one.objectness.shape, -1).numpy() for f in one], -1)
            furthest = max(furthest, float(np.abs(flat - two).max()))
            expected += engine.results(one, sizes)
            found += engine.results(_predictions(two), sizes)
        else:
            expected += engine(images, sizes)
            found += (
                [_resized(run, header, image) for image in pixels]
                if header.resize
                else run_whole(run, header, images, sizes)
            )
        narrator.advance(amount=len(images))
    narrator.end()
    resized = header.resize and header.precision == "fp32"
    tolerance = TOLERANCES["resize" if resized else header.precision]
    parity = compare(
        expected,
        found,
        scales=scales,
        threshold=engine.decode.score_threshold,
        most=engine.decode.num_rows,
        tolerance=tolerance,
    )
    rows = parity.rows(tolerance)
    if header.raw:
        rows.append(("raw outputs differ by", furthest, math.inf))
    outcome = Outcome(len(expected), parity.detections, pictures.words, rows)
    return _measured(outcome, engine, expected, found, pictures, tolerance)


def _measured(
    outcome: Outcome,
    engine: TorchEngine,
    expected: list[Detections],
    found: list[Detections],
    pictures: Pictures,
    tolerance: Tolerance,
) -> Outcome:
    """With the mAP of both, if there are objects to be found."""
    if pictures.truth is None:
        return outcome
    config = build(EvalConfig, engine.recipe.get("evaluate", {}), where="evaluate")
    metric = choose_metric(config.metric, pictures.format)
    means = [
        score(each, pictures.truth, size=engine.size[0], metric=metric, config=config).mean
        for each in (expected, found)
    ]
    if any(math.isnan(mean) for mean in means):
        return outcome
    row = (f"{metric} mAP falls by", means[0] - means[1], tolerance.loss)
    return outcome._replace(rows=[*outcome.rows, row], means=(means[0], means[1]))


def _predictions(raw: np.ndarray) -> Predictions:
    """(N, P, 5 + C) as the network says it."""
    values = torch.from_numpy(raw)
    return Predictions(values[..., :2], values[..., 2:4], values[..., 4], values[..., 5:])


def _resized(run: Run, header: Header, image: np.ndarray) -> Detections:
    """What a graph that resizes finds in one picture (H, W, 3)."""
    return unpacked(run_in_batches(run, header, {"images": image[None]}))[0]
