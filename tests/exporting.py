"""A small untrained network that finds much, and what is exported from it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from triscale.export.write import Wanted, export
from triscale.log import Narrator
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import Fit, InputConfig
from triscale.weights.contents import WeightsInfo
from triscale.weights.native import save_weights

SIZE = 96
CLASSES = ("cat", "dog", "bird")
silent = Narrator(enabled=False)
quietly = partial(export, narrator=silent)


def write_weights(path: Path, *, fit: Fit = "letterbox", biases: float = 0) -> Path:
    """Weights of a network for pictures of SIZE, whose scores lie around 0.25.

    `biases`: the standard deviation of the backbone's.
    """
    config = ModelConfig(backbone="mobilenet0.1", init="kaiming", objectness_prior=0.5)
    model = build_model(config, len(CLASSES), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for output in model.head.outputs:
            output.weight.normal_(0, 0.3, generator=generator)
        for module in model.backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.bias.normal_(0, biases, generator=generator)
    recipe = {"decode": {"score_threshold": 0.2, "top_k": 100}}
    save_weights(path, model, WeightsInfo(CLASSES, config, SIZE, InputConfig(fit=fit), recipe))
    return path


def write_onnx(folder: Path) -> Path:
    """Such a network as ONNX; its weights lie beside it."""
    weights = write_weights(folder / "small.safetensors")
    quietly(weights, folder / "small.onnx", Wanted())
    return folder / "small.onnx"


def drawn(number: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Noisy pictures of different sizes."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(40, 200, (number, 2)).tolist()
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
