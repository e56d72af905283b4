"""GluonCV's `.params` files: its YOLOv3 networks, and its Darknet-53 and MobileNet v1 without head.

A file holds tensors and nothing else, so the network is recognised by their names and shapes. Three
spellings of the names exist. `save_parameters` writes the structure (`stages.0.0.0.weight`; in a
backbone alone, whose layers aren't cut into stages, `features.0.0.weight`). The older
`collect_params().save` writes a scope and a number per scope and kind of layer
(`darknetv30_conv0_weight`, `yolov30_yolooutputv31_conv0_bias`). `export` puts `arg:` or `aux:`
before that. All three are read, the first is written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from triscale.weights.gluoncv_names import gluoncv_names
from triscale.weights.mxnet import read_ndarrays, write_ndarrays

Arrays = dict[str, NDArray[Any]]

SIZE = 416  # what GluonCV states the results of its networks at
OFFSETS_SIDE = 128  # gluoncv: each output layer keeps a constant grid of so many cells squared
# in the files, but not weights of ours
_OTHERS = re.compile(r"yolo_outputs\.[012]\.(anchors|offsets)|output\.(weight|bias)")
# the layers of GluonCV's `features` that its stages begin with
_CUTS = {"darknet53": (0, 15, 24), "mobilenet1.0": (0, 33, 69)}
# a parameter's scopes and its own name, as in yolov30_yolodetectionblockv32_conv5_weight
_SCOPED = re.compile(
    r"(?:([^.]*)_)?((?:conv|batchnorm|dense)\d+_[a-z_]+|(?:anchor|offset)_\d+)", re.ASCII
)
_SCOPE = re.compile(r"(?:.*_)?(yolov3|yolodetectionblockv3|yolooutputv3)(\d+)", re.ASCII)


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
    keys = _reference_keys(model, bare=bare)
    expected = _shapes(model, keys)
    shapes = {name: array.shape for name, array in arrays.items() if not _OTHERS.fullmatch(name)}
    _check_shapes(shapes, expected, network=config.backbone, path=path)
    tensors = {name: torch.from_numpy(_float32(arrays, name, path)) for name in keys}
    require_finite(tensors, path=path)
    names = class_names(num_classes, classes, path=path)
    info = WeightsInfo(names, model=config, size=SIZE, input=InputConfig(), recipe={})
    return Weights({keys[name]: tensor for name, tensor in tensors.items()}, info)


def write_gluoncv(path: Path, weights: Weights) -> None:
    """Write a whole network, or a whole backbone, as `save_parameters` does, atomically.

    Raises UserError for what GluonCV doesn't have.
    """
    config = weights.info.model
    if config.spp or config.backbone == "tiny":
        raise UserError(
            f"{path}: expected a network that GluonCV has, YOLOv3 with darknet53 or mobilenet, "
            f"found YOLOv3-{'spp' if config.spp else 'tiny'}"
        )
    bare = not weights.info.classes
    model = skeleton(config, max(len(weights.info.classes), 1))
    keys = _reference_keys(model, bare=bare)
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
        arrays[_flat(name, config.backbone) if bare else name] = array
    write_ndarrays(path, arrays)


def _reference_keys(model: YOLOv3, *, bare: bool) -> dict[str, str]:
    """Structural name -> our key, in the reference's order, of the network or of its backbone."""
    pairs = sorted(gluoncv_names(model).items(), key=lambda pair: pair[1].partition(".")[0])
    return {name: key for key, name in pairs if not bare or key.startswith("backbone.")}


def _flat(name: str, backbone: str) -> str:
    """What `stages.<i>.<k>...` is called where the layers are one list `features`."""
    first, *rest = name.split(".")
    if first != "stages":
        return name
    cut = _CUTS["darknet53" if backbone == "darknet53" else "mobilenet1.0"][int(rest[0])]
    return ".".join(["features", str(cut + int(rest[1])), *rest[2:]])


def _recognise(found: Arrays, path: Path) -> tuple[str, Arrays]:
    """Which kind of backbone a file has, and its arrays by structural name."""
    best, overlap = "", 0.0
    named: dict[str, str] = {}  # structural name -> the file's
    for backbone in _CUTS:
        names = _reference_keys(skeleton(ModelConfig(backbone), 1), bare=False)
        spellings = _spellings(names, backbone)
        renamed = {spellings.get(_spelling(name), name): name for name in found}
        known = set(spellings.values())
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


def _spellings(names: Iterable[str], backbone: str) -> dict[str, str]:
    """Each spelling of a network's names, as `_spelling` gives it -> the structural name."""
    table: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in names:
        first, second, *_, leaf = name.split(".")
        part = first if first in ("stages", "transitions") else f"{first}.{second}"
        kind = "conv" if leaf in ("weight", "bias") else "batchnorm"
        table |= {name: name, _flat(name, backbone): name}
        table[f"{part} {kind}{counts[part + leaf]}_{leaf}"] = name
        counts[part + leaf] += 1
    for i in range(len(YOLO3_ANCHORS)):
        for leaf in ("anchors", "offsets"):
            name = f"yolo_outputs.{i}.{leaf}"
            table |= {name: name, f"yolo_outputs.{i} {leaf[:-1]}_{i}": name}
    for leaf in ("weight", "bias"):
        table |= {f"output.{leaf}": f"output.{leaf}", f"stages dense0_{leaf}": f"output.{leaf}"}
    return table


def _spelling(name: str) -> str:
    """A name without `arg:` or `aux:`; a scoped name as its part of the network and its number."""
    name = name.removeprefix("arg:").removeprefix("aux:")
    scoped = _SCOPED.fullmatch(name)
    if scoped is None:
        return name
    scope = _SCOPE.fullmatch(scoped[1] or "")
    part = "stages"  # the backbone's scope is called after the backbone
    if scope is not None:
        parts = {
            "yolov3": "transitions",
            "yolodetectionblockv3": f"yolo_blocks.{scope[2]}",
            "yolooutputv3": f"yolo_outputs.{scope[2]}",
        }
        part = parts[scope[1]]
    return f"{part} {scoped[2]}"


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
