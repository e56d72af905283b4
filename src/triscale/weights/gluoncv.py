"""GluonCV's `.params` files: its YOLOv3 networks, and its Darknet-53 and MobileNet v1 without head.

A file holds tensors and nothing else, so the network is recognised by their names and shapes. All
spellings of the names in `gluoncv_names.py` are read, that of `save_parameters` is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triscale.anchors import YOLO3_ANCHORS, Anchors
from triscale.errors import UserError
from triscale.model.mobilenet import width_of
from triscale.model.yolo import NUM_BOX_CHANNELS, ModelConfig, YOLOv3, skeleton
from triscale.pixels import InputConfig
from triscale.weights.contents import (
    Weights,
    WeightsInfo,
    class_names,
    require_finite,
    with_normalisation,
)
from triscale.weights.gluoncv_names import (
    CUTS,
    flat_name,
    reference_keys,
    spelling,
    spellings,
)
from triscale.weights.mxnet import read_ndarrays, write_ndarrays

Arrays = dict[str, NDArray[Any]]

SIZE = 416  # what GluonCV states the results of its networks at
OFFSETS_SIDE = 128  # gluoncv: each output layer keeps a constant grid of so many cells squared
# in the files, but not weights of ours
_OTHERS = re.compile(r"yolo_outputs\.[012]\.(anchors|offsets)|output\.(weight|bias)")


def read_gluoncv(path: Path, *, classes: Sequence[str] | None = None) -> Weights:
    """The weights of a `.params` file in our names, and what they tell about the network.

    `classes` are the names that the file hasn't got. A backbone's classifier is left out. Raises
    UserError if the file can't be read or isn't a network that both sides have.
    """
    backbone, arrays = _recognise(read_ndarrays(path), path)
    bare = all(name.startswith(("stages.", "output.")) for name in arrays)
    anchors, num_classes = (YOLO3_ANCHORS, 0) if bare else _outputs(arrays, path)
    config = ModelConfig(
        backbone=_with_width(backbone, arrays), anchors=() if anchors == YOLO3_ANCHORS else anchors
    )
    model = skeleton(config, max(num_classes, 1))
    keys = reference_keys(model, bare=bare)
    expected = _shapes(model, keys)
    shapes = {name: array.shape for name, array in arrays.items() if not _OTHERS.fullmatch(name)}
    _check_shapes(shapes, expected, network=config.backbone, path=path)
    tensors = {name: torch.from_numpy(_float32(arrays, name, path)) for name in keys}
    require_finite(tensors, path=path)
    names = class_names(num_classes, classes, path=path)
    named = classes is not None or bare
    info = WeightsInfo(names, config, SIZE, InputConfig(), recipe={}, named=named)
    return Weights({keys[name]: tensor for name, tensor in tensors.items()}, info)


def write_gluoncv(path: Path, weights: Weights) -> None:
    """Write a whole network, or a whole backbone, as `save_parameters` does, atomically.

    Raises UserError for what GluonCV doesn't have.
    """
    config = weights.info.model
    bare = not weights.info.classes
    model = skeleton(config, max(len(weights.info.classes), 1))
    try:
        keys = reference_keys(model, bare=bare)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    expected = _shapes(model, keys)
    names = {key: name for name, key in keys.items()}
    shapes = {
        names.get(key, key): tuple(tensor.shape)
        for key, tensor in weights.tensors.items()
        if not key.endswith("num_batches_tracked")
    }
    _check_shapes(shapes, expected, network=config.backbone, path=path)
    tensors = with_normalisation(weights, "imagenet").tensors
    arrays: Arrays = {}
    for name, key in keys.items():
        layer, _, leaf = name.partition(".prediction.")
        if leaf == "weight":
            anchors = model.anchors[int(layer.rpartition(".")[2])]
            arrays[f"{layer}.anchors"] = np.array([[anchors]], np.float32)  # (1, 1, A, 2)
            cells = np.indices((OFFSETS_SIDE, OFFSETS_SIDE), np.float32)[::-1]  # column, row
            arrays[f"{layer}.offsets"] = np.moveaxis(cells, 0, -1)[None, None]
        array: NDArray[Any] = tensors[key].detach().float().cpu().numpy()
        arrays[flat_name(name, config.backbone) if bare else name] = array
    write_ndarrays(path, arrays)


def _recognise(found: Arrays, path: Path) -> tuple[str, Arrays]:
    """Which kind of backbone a file has, and its arrays by structural name."""
    best, overlap = "", 0.0
    named: dict[str, str] = {}  # structural name -> the file's
    for backbone in CUTS:
        names = reference_keys(skeleton(ModelConfig(backbone), 1), bare=False)
        known_as = spellings(names, backbone)
        renamed = {known_as.get(spelling(name), name): name for name in found}
        known = set(known_as.values())
        share = len(renamed.keys() & known) / len(renamed.keys() | known)
        if share > overlap:
            best, overlap, named = backbone, share, renamed
    if not best:
        first = f", first {next(iter(found))!r:.80}" if found else ""
        raise UserError(
            f"{path}: expected the tensors of GluonCV's YOLOv3, Darknet-53 or MobileNet, "
            f"found {len(found)} others{first}"
        )
    if len(named) < len(found):
        twice = (set(found) - set(named.values())).pop()
        raise UserError(f"{path}: expected each tensor once, found {twice!r:.80} under two names")
    return best, {name: found[original] for name, original in named.items()}


def _outputs(arrays: Arrays, path: Path) -> tuple[Anchors, int]:
    """The anchors and the number of classes, from the constants and the bias of the outputs."""
    anchors: list[tuple[tuple[float, float], ...]] = []
    count = 3
    for i in range(len(YOLO3_ANCHORS)):
        name = f"yolo_outputs.{i}.anchors"
        shape = _shape(arrays, name)
        if i == 0 and shape is not None and len(shape) == 4:
            count = shape[2]
        if shape != (1, 1, count, 2):
            expected = _said((1, 1, count, 2))
            raise UserError(f"{path}: {name}: expected {expected}, found {_said(shape)}")
        pairs = _float32(arrays, name, path)[0, 0]
        if not (np.isfinite(pairs) & (pairs > 0)).all():
            found = f"{pairs.tolist()}"
            raise UserError(f"{path}: {name}: expected sides above 0, found {found:.80}")
        anchors.append(tuple((float(w), float(h)) for w, h in pairs))
    name = "yolo_outputs.0.prediction.bias"
    shape = _shape(arrays, name)
    channels, rest = divmod(shape[0] if shape else 0, count)
    if rest or channels <= NUM_BOX_CHANNELS:
        expected = f"{count} x ({NUM_BOX_CHANNELS} + classes) values"
        raise UserError(f"{path}: {name}: expected {expected}, found {_said(shape)}")
    return tuple(anchors), channels - NUM_BOX_CHANNELS


def _with_width(backbone: str, arrays: Arrays) -> str:
    """The name of a backbone with its width."""
    last = _shape(arrays, "stages.2.9.weight") or (0,)
    if backbone == "darknet53" or last[1:] != (last[0], 1, 1):
        return backbone  # a MobileNet of no width is refused when shapes are compared
    return f"mobilenet{width_of(last[0]) or 1.0}"


def _shapes(model: YOLOv3, keys: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    state = model.state_dict()
    return {name: tuple(state[key].shape) for name, key in keys.items()}


def _check_shapes(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    *,
    network: str,
    path: Path,
) -> None:
    """UserError unless the tensors found are those expected; it tells how many aren't."""
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path}: {len(wrong)} tensors do not fit {network}, the first is {name!r:.80}: "
            f"expected {_said(expected.get(name))}, found {_said(found.get(name))}"
        )


def _shape(arrays: Arrays, name: str) -> tuple[int, ...] | None:
    return arrays[name].shape if name in arrays else None


def _said(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"shape {shape}"


def _float32(arrays: Arrays, name: str, path: Path) -> NDArray[np.float32]:
    """An array as float32; a network that was cast has float16."""
    array = arrays[name]
    if array.dtype.name not in ("float32", "float16"):
        raise UserError(f"{path}: {name}: expected float32 or float16, found {array.dtype}")
    return array.astype(np.float32, copy=False)
