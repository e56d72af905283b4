"""Darknet's `.weights` files, whole or the first layers only (`darknet53.conv.74`).

All little endian: i32 major, minor and revision of the format; the number of pictures seen in
training, u64 from version 0.2 on, i32 before; then float32 only, for each convolution in the order
of the .cfg: beta, gamma, running mean, running variance and kernel with batch normalisation, bias
and kernel without. Source: the format as Darknet (public domain) reads and writes it.

Darknet on a CPU divides by sqrt(variance) + 1e-6, our layers, as Darknet on a GPU, by
sqrt(variance + 1e-5). The variances are converted, so that our network computes what the former
does; a file that is read and written keeps its numbers, but for variances below 1e-5.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from itertools import accumulate, takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triscale.errors import UserError
from triscale.files import replace_atomically, write_atomically
from triscale.model.yolo import ModelConfig
from triscale.pixels import InputConfig
from triscale.weights.contents import (
    Weights,
    WeightsInfo,
    class_names,
    read_names,
    require_finite,
    with_normalisation,
)
from triscale.weights.darknet_cfg import CLASSIFIER, cfg_text, read_cfg
from triscale.weights.darknet_layers import NETWORKS, Network, Section, classifier, layers

EPSILON = 1e-5  # of ConvCell.norm, inside the root
DARKNET_EPSILON = 1e-6  # beside the root
MAX_CLASSES = 10_000  # without a .cfg; with more, any file of some size would be a YOLOv3-tiny
_ENDING = re.compile(r"\.weights$|\.conv\.\d+$", re.IGNORECASE)

# what Darknet's training puts behind the name of its .cfg
_TRAINED = re.compile(r"_(final|last|best|\d+)$", re.IGNORECASE)


class _Reading(NamedTuple):
    """What a number of floats may stand for."""

    num_floats: int
    text: str
    network: Network
    convolutions: Sequence[Section]


def is_darknet(path: Path) -> bool:
    """Whether the name is one of Darknet's: x.weights, or x.conv.N for the first N layers."""
    return len(_ENDING.sub("", path.name)) not in (0, len(path.name))


def read_darknet(
    path: Path, *, cfg: Path | None = None, classes: Sequence[str] | None = None
) -> Weights:
    """The weights of a file of Darknet, with input in 0..1 and, unless the .cfg says no, letterbox.

    The network is the one that `cfg` describes, or the file of the same name with the ending .cfg
    if there is one (for `x_final.weights` also x.cfg); else the one that has so many numbers:
    yolov3, yolov3-spp or yolov3-tiny, the first layers of one, or the classifier darknet53, of
    which the backbone is kept. The names of the classes are `classes`, or the lines of the file
    with the ending .names, or the usual ones.
    Raises UserError when a file can't be read or they don't fit together.
    """
    try:
        cfg = cfg or _described_by(path, ".cfg")
        described = read_cfg(cfg) if cfg is not None else None
        with path.open("rb") as file:
            count = _read_header(file, path)
            reading = _reading(path, count, described)
            tensors = _read_tensors(file, reading.convolutions, path)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    require_finite(tensors, path=path)
    network = reading.network
    whole = len(reading.convolutions) == len(network.convolutions)
    num_classes = network.num_classes if whole else 0
    names = _class_names(path, num_classes) if classes is None else classes
    info = WeightsInfo(
        classes=class_names(num_classes, names, path=path),
        model=network.model,
        size=network.size,
        input=InputConfig(normalise="unit", fit=network.fit),
        recipe={},
        named=names is not None or not num_classes,
    )
    return Weights(tensors, info)


def write_darknet(path: Path, weights: Weights) -> None:
    """Write weights as Darknet does: a whole network, or its first layers alone.

    Beside a whole network lie its .cfg and .names afterwards; files of these names are replaced.
    Raises UserError for what Darknet has no place for.
    """
    if not is_darknet(path):
        raise UserError(f"{path}: expected a name that ends in .weights or .conv.N")
    info = weights.info
    try:
        sections = layers(info.model, len(info.classes))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    network = Network(info.model, len(info.classes), sections, info.size, info.input.fit)
    held = _held(path, network.convolutions, weights.tensors)
    whole = len(held) == len(network.convolutions)
    texts: dict[str, str] = {}
    if whole:
        texts = {".cfg": cfg_text(network, path=path), ".names": _lines(path, info.classes)}
    require_finite(weights.tensors, path=path)
    tensors = with_normalisation(weights, "unit").tensors
    values = [value for conv in held for value in _to_darknet(tensors, conv)]

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(struct.pack("<3iQ", 0, 2, 0, 0))
            for value in values:
                file.write(value.detach().cpu().contiguous().numpy().astype("<f4").data)

    for suffix, text in texts.items():  # first: weights without them would be misread
        write_atomically(beside(path, suffix), text.encode())
    replace_atomically(path, write)


def beside(path: Path, suffix: str) -> Path:
    """The file of the same name with another ending."""
    return path.with_name(_ENDING.sub("", path.name) + suffix)


def _described_by(path: Path, suffix: str) -> Path | None:
    """The file that tells about `path`, of its name or of that which Darknet's training extends."""
    file = beside(path, suffix)
    trained = file.with_name(_TRAINED.sub("", file.stem) + suffix)
    return next((f for f in (file, trained) if f.is_file()), None)


def _read_header(file: BufferedReader, path: Path) -> int:
    """How many floats follow the header."""
    size = os.fstat(file.fileno()).st_size
    if size < 12:
        raise UserError(f"{path}: expected a header of at least 16 bytes, found {size} bytes")
    major, minor, revision = struct.unpack("<3i", file.read(12))
    if not (0 <= major < 1000 and 0 <= minor < 1000 and revision >= 0):  # above: other layouts
        raise UserError(
            f"{path}: expected weights of Darknet, which begin with a version such as 0 2 0, "
            f"found {major} {minor} {revision}"
        )
    code, width = ("<q", 8) if major * 10 + minor >= 2 else ("<i", 4)
    if size < 12 + width:
        raise UserError(f"{path}: expected a header of {12 + width} bytes, found {size} bytes")
    (seen,) = struct.unpack(code, file.read(width))
    if seen < 0:
        raise UserError(f"{path}: expected a number of pictures seen of at least 0, found {seen}")
    count, rest = divmod(size - 12 - width, 4)
    if rest:
        raise UserError(
            f"{path}: expected numbers of 4 bytes after a header of {12 + width}, found "
            f"{size - 12 - width} bytes (the file is cut off or damaged)"
        )
    return count


def _reading(path: Path, count: int, described: Network | None) -> _Reading:
    """What `count` floats stand for; a beginning that networks share is the first one's."""
    if described is not None:
        readings = list(_readings("the network of the .cfg", described))
    else:
        known = {name: _with_classes(config, count) for name, config in NETWORKS.items()}
        known[CLASSIFIER] = Network(ModelConfig(), 0, classifier())
        readings = [r for name, network in known.items() for r in _readings(name, network)]
    nearest = min(readings, key=lambda reading: abs(reading.num_floats - count))
    if nearest.num_floats != count:
        raise UserError(
            f"{path}: expected {nearest.num_floats} numbers for {nearest.text}, found {count}; "
            "the file is cut off or damaged, or it belongs to another network"
            + ("" if described else ", which its .cfg would tell (this is the nearest known)")
        )
    return nearest


def _readings(name: str, network: Network) -> Iterator[_Reading]:
    """The whole network, and its beginnings up to the first output."""
    convolutions = network.convolutions
    ends = list(accumulate(conv.num_floats for conv in convolutions))
    classes = f" with {network.num_classes} classes" if network.num_classes else ""
    ours = [conv for conv in convolutions if conv.name]
    yield _Reading(ends[-1], f"{name}{classes}", network, ours)
    for i, _ in enumerate(takewhile(lambda conv: conv.normalised, convolutions)):
        text = f"the first {i + 1} convolutions of {name}"
        yield _Reading(ends[i], text, network, convolutions[: i + 1])


def _with_classes(config: ModelConfig, count: int) -> Network:
    """The network with the number of classes that comes nearest to `count` floats."""
    one, two = (
        sum(conv.num_floats for conv in Network(config, n, layers(config, n)).convolutions)
        for n in (1, 2)
    )
    num_classes = min(max(1 + round((count - one) / (two - one)), 1), MAX_CLASSES)
    return Network(config, num_classes, layers(config, num_classes))


def _read_tensors(
    file: BufferedReader, convolutions: Sequence[Section], path: Path
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for conv in convolutions:
        for name, shape in conv.tensors.items():
            size = math.prod(shape)
            array = np.fromfile(file, "<f4", size)
            if len(array) < size:  # somebody else shortens the file
                raise UserError(f"{path}: {name}: expected {size} numbers, found {len(array)}")
            tensors[name] = torch.from_numpy(array.astype(np.float32, copy=False)).view(shape)
        if conv.normalised:
            norm = f"{conv.name}.norm"
            variance = f"{norm}.running_var"
            require_finite({variance: tensors[variance]}, path=path)  # its root is taken
            tensors.update(_to_ours(tensors, norm))
    return tensors


def _to_ours(tensors: Mapping[str, Tensor], norm: str) -> dict[str, Tensor]:
    """Scale and variance that make our layer compute what Darknet's does."""
    deviation = tensors[f"{norm}.running_var"].double().sqrt() + DARKNET_EPSILON
    variance = (deviation.square() - EPSILON).clamp(min=0)
    # 1, but for variances so small that ours would have to be negative
    gain = (variance + EPSILON).sqrt() / deviation
    scale = tensors[f"{norm}.weight"].double() * gain
    return {f"{norm}.weight": scale.float(), f"{norm}.running_var": variance.float()}


def _to_darknet(tensors: Mapping[str, Tensor], conv: Section) -> list[Tensor]:
    """The tensors of a convolution in the order of the file, with Darknet's variance."""
    values = {name: tensors[name].float() for name in conv.tensors}
    if conv.normalised:
        norm = f"{conv.name}.norm"
        deviation = (tensors[f"{norm}.running_var"].double() + EPSILON).sqrt()
        values[f"{norm}.running_var"] = (deviation - DARKNET_EPSILON).square().float()
    return list(values.values())


def _held(
    path: Path, convolutions: Sequence[Section], tensors: Mapping[str, Tensor]
) -> list[Section]:
    """The convolutions whose tensors are there: all of them, or the first ones."""
    given = {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    held = list(takewhile(lambda conv: conv.tensors.items() <= given.items(), convolutions))
    whole = len(held) == len(convolutions)
    others = len(given) - sum(len(conv.tensors) for conv in held)
    if others or not held or not (whole or all(conv.normalised for conv in held)):
        raise UserError(
            f"{path}: Darknet's files hold a whole network, or its first layers up to the first "
            f"output; found {len(held)} of {len(convolutions)} convolutions in order and {others} "
            "other tensors"
        )
    return held


def _class_names(path: Path, number: int) -> tuple[str, ...] | None:
    """The names in the file beside, None without one; UserError if they are too many or few."""
    file = _described_by(path, ".names")
    if not number or file is None:
        return None
    names = read_names(file)
    if len(names) != number:
        raise UserError(
            f"{file}: expected {number} lines, the classes of {path.name}, found {len(names)}"
        )
    return names


def _lines(path: Path, classes: Sequence[str]) -> str:
    """The text of a .names file."""
    if not classes:
        raise UserError(f"{path}: Darknet's networks have at least one class, this one has none")
    for name in classes:
        if not name or name != name.strip() or "\n" in name:
            raise UserError(f"{path}: a .names file can't hold the class name {name!r}")
    return "".join(f"{name}\n" for name in classes)
