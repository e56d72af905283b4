"""A small network with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.serve.clients import CLASSES
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import InputConfig
from triscale.weights.contents import WeightsInfo
from triscale.weights.native import save_weights


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of size 96 that finds 100 objects in noise."""
    config = ModelConfig(backbone="mobilenet0.1", init="kaiming", objectness_prior=0.9)
    model = build_model(config, len(CLASSES), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for output in model.head.outputs:
            output.weight.mul_(100)  # else all scores are the same
    path = tmp_path_factory.mktemp("served") / "random.safetensors"
    save_weights(path, model, WeightsInfo(CLASSES, config, 96, InputConfig(), {}))
    return path
