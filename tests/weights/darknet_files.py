"""Darknet's files made to order."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from triscale.model.yolo import ModelConfig, build_model, skeleton
from triscale.pixels import InputConfig
from triscale.weights.contents import Weights, WeightsInfo
from triscale.weights.darknet import read_darknet, write_darknet
from triscale.weights.darknet_layers import Network, layers

FULL, SPP, TINY = ModelConfig(), ModelConfig(spp=True), ModelConfig("tiny")
DARKNET_INPUT = InputConfig(normalise="unit", fit="letterbox")
HEADER = struct.pack("<3iQ", 0, 2, 0, 32013312)
FIRST = 4 * 16 + 16 * 27  # floats of YOLOv3-tiny's first convolution


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state_names(config: ModelConfig, num_classes: int = 1) -> list[str]:
    state = skeleton(config, num_classes).state_dict()
    return [name for name in state if not name.endswith("num_batches_tracked")]


def made(config: ModelConfig, classes: tuple[str, ...], **of_input: str) -> Weights:
    """A network with random weights, as training would leave it."""
    model = build_model(replace(config, init="kaiming"), len(classes), generator=seeded())
    state = dict(model.state_dict())
    for name, tensor in state.items():
        if name.endswith(("norm.bias", "running_mean")):
            tensor.normal_(std=0.1, generator=seeded(1))
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=seeded(2))
    kept = InputConfig(**of_input) if of_input else DARKNET_INPUT
    return Weights(state, WeightsInfo(classes, config, 64, kept, {}))


def first_layers(weights: Weights, number: int) -> Weights:
    """The first convolutions of a network alone."""
    info = weights.info
    sections = Network(info.model, 1, layers(info.model, len(info.classes))).convolutions[:number]
    names = [name for section in sections for name in section.tensors]
    tensors = {name: weights.tensors[name] for name in names}
    return Weights(tensors, info._replace(classes=()))


def first_convolution(*variances: float) -> NDArray[np.float32]:
    """The floats of a file with YOLOv3-tiny's first convolution: 16 filters."""
    values = np.random.default_rng(0).normal(size=FIRST).astype(np.float32)
    values[48:64] = np.resize(np.array(variances or (1.0,), np.float32), 16)
    return values


def write_floats(path: Path, floats: NDArray[np.float32], header: bytes = HEADER) -> Path:
    path.write_bytes(header + floats.astype("<f4").tobytes())
    return path


def empty_file(path: Path, num_floats: int) -> Path:
    """A file of zeros, which take no room on the disk."""
    path.write_bytes(HEADER)
    with path.open("r+b") as file:
        file.truncate(len(HEADER) + 4 * num_floats)
    return path


def floats_of(path: Path) -> NDArray[np.float32]:
    return np.fromfile(path, "<f4", offset=20)


def there_and_back(folder: Path, floats: NDArray[np.float32]) -> NDArray[np.float32]:
    weights = read_darknet(write_floats(folder / "there.weights", floats))
    write_darknet(folder / "back.weights", weights)
    return floats_of(folder / "back.weights")


def tiny_file(tmp_path: Path, num_classes: int = 3) -> Path:
    return empty_file(tmp_path / "x.weights", 8_673_934 + 2310 * num_classes)
