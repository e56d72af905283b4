"""Weights of any format that weights/formats.py knows, run by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from triscale.config import build
from triscale.decode import DecodeConfig, detect, detections
from triscale.detections import Detections
from triscale.distributed import choose_device
from triscale.errors import UserError
from triscale.model.folded import DTYPES, Precision, faster_precision, fold
from triscale.normalise import network_input
from triscale.pixels import Fit, placement
from triscale.types import Batch, Predictions
from triscale.weights.formats import load_weights


class TorchEngine:
    """An `Engine`; `precision` is what the network computes in, `auto` what is faster here.

    `size` (height, width) of the network input is the weights' own unless it is given. `threads`
    are those of the whole process: torch has no others.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
        size: tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.device = choose_device(device)
        self.precision = _choose_precision(precision, self.device)
        model, self.info = load_weights(path)
        self.model = fold(model.to(self.device), dtype=DTYPES[self.precision])
        self.decode = build(
            DecodeConfig, self.info.recipe.get("decode", {}), where=f"{path}: decode"
        )
        self.classes = self.info.classes
        self.fit: Fit = self.info.input.fit
        self.recipe = self.info.recipe
        self.size = size or (self.info.size, self.info.size)
        self.name = f"torch {torch.__version__}, {self.precision}, {self.device}"
        self._grid = self.model.grid(self.size)

    def __call__(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> list[Detections]:
        """See `Engine`."""
        return self.results(self.predictions(images, sizes), sizes)

    def predictions(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Predictions:
        """The network's own outputs for such pictures."""
        with torch.inference_mode():
            return self.model(network_input(self.batch(images, sizes), self.info.input))

    def results(self, predictions: Predictions, sizes: NDArray[np.int64]) -> list[Detections]:
        """The detections that they mean, in pixels of pictures of `sizes` (N, 2)."""
        decoded = detect(predictions, self._grid, self.decode)
        original = torch.from_numpy(sizes).to(self.device)
        return detections(decoded, self.size, original_sizes=original, fit=self.fit)

    def batch(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Batch:
        """The pictures as a batch without labels, on the device."""
        number = len(images)
        places = np.array(
            [placement((height, width), self.size, self.fit) for height, width in sizes.tolist()],
            np.float32,
        ).reshape(number, 4)
        places[:, 2:] += places[:, :2]
        return Batch(
            images=torch.from_numpy(images),
            boxes=torch.zeros(number, 0, 4),
            labels=torch.zeros(number, 0, dtype=torch.int64),
            weights=torch.zeros(number, 0),
            image_ids=torch.zeros(number, dtype=torch.int64),
            original_sizes=torch.from_numpy(sizes),
            colour=torch.eye(3, 4).repeat(number, 1, 1),
            rectangle=torch.from_numpy(places),
        ).to(self.device)


def _choose_precision(name: str, device: torch.device) -> Precision:
    """The precision for fp32, bf16 or auto."""
    if name == "auto":
        return faster_precision(device)
    for precision in DTYPES:
        if name == precision:
            return precision
    raise UserError(f"precision: expected fp32, bf16 or auto, got '{name}'")
