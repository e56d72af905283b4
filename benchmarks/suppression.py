"""What suppression costs beside decoding, and what `detect` saves that does both.

decode: boxes and scores of all predictions. nms: from these to detections. detect: from the raw
predictions to the same detections; it decodes what can matter. The predictions lie in memory as the
network leaves them. Few: 20 objects in a picture and nothing else above the threshold; all: every
prediction above it, as an untrained network says, so that all 400 candidates are compared.

    python benchmarks/suppression.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from harness import Report, arguments, in_turns, ratio

from triscale.anchors import YOLO3_ANCHORS, Grid, make_grid
from triscale.decode import DecodeConfig, decode_boxes, decode_scores, detect, nms
from triscale.types import Predictions

SIDE = 416
OBJECTS = 20


def predictions_of(batch: int, num_classes: int, *, few: bool, grid: Grid) -> Predictions:
    """Random logits, (B, N, 5 + C) in one piece."""
    rng = torch.Generator().manual_seed(0)
    raw = torch.randn(batch, len(grid.cells), 5 + num_classes, generator=rng)
    raw[..., 2:4] *= 0.4
    if few:
        raw[..., 4] -= 14
        raw[..., 5:] -= 8
        found = torch.rand(raw.shape[:2], generator=rng).topk(OBJECTS).indices  # (B, 20)
        image = torch.arange(batch)[:, None]
        raw[image, found, 4] += 16
        raw[image, found, 5] += 10
    return Predictions(raw[..., :2], raw[..., 2:4], raw[..., 4], raw[..., 5:])


def contenders(predictions: Predictions, grid: Grid) -> dict[str, Callable[[], float]]:
    """What is measured, in seconds."""
    config = DecodeConfig()
    boxes, scores = decode_boxes(predictions, grid), decode_scores(predictions)
    lengths = tuple(3 * rows * columns for rows, columns in grid.maps)
    runs: dict[str, Callable[[], object]] = {
        "decode": lambda: (decode_boxes(predictions, grid), decode_scores(predictions)),
        "nms": lambda: nms(boxes, scores, lengths=lengths, config=config),
        "detect": lambda: detect(predictions, grid, config),
    }

    def timed(run: Callable[[], object]) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

        return measure

    return {name: timed(run) for name, run in runs.items()}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, rounds=15, peers=False)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 80])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    words = parser.parse_args()
    grid = make_grid(YOLO3_ANCHORS, (SIDE, SIDE))
    rows: list[tuple[str | float, ...]] = []
    for threads in words.threads:
        torch.set_num_threads(threads)
        for batch in words.batch_size:
            for num_classes in words.classes:
                for few in (True, False):
                    predictions = predictions_of(batch, num_classes, few=few, grid=grid)
                    with torch.inference_mode():
                        figures = in_turns(contenders(predictions, grid), rounds=words.rounds)
                    medians = [1e3 * statistics.median(seconds) for seconds in figures.values()]
                    both = [
                        sum(pair) for pair in zip(figures["decode"], figures["nms"], strict=True)
                    ]
                    shares = [
                        ratio(figures["nms"], figures["decode"]),
                        ratio(both, figures["detect"]),
                    ]
                    candidates = "few" if few else "all"
                    rows.append((threads, batch, num_classes, candidates, *medians, *shares))
    Report(
        title=f"Suppression beside decoding, {SIDE} px, {len(grid.cells):,} predictions a picture",
        columns=(
            "threads",
            "batch",
            "classes",
            "candidates",
            "decode ms",
            "nms ms",
            "detect ms",
            "nms / decode",
            "(decode + nms) / detect",
        ),
        rows=rows,
    ).show(as_json=words.json)


if __name__ == "__main__":
    main()
