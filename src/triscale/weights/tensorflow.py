"""Google's MobileNet v1 as the start of a backbone, from arrays in numpy's `.npz`.

The arrays are called after TensorFlow's layers, `Conv2d_0` and `Conv2d_<i>_{depthwise,pointwise}`,
each with `.conv.weight` in PyTorch's layout and `.bn.*`; `fc.*` is the classifier. In two things
the network differs from ours by numbers alone, which are folded into the weights: its batch
normalisation has epsilon 1e-3, and its pixels go from -1 to 1. Other differences stay:

- ReLU6 cuts activations at 6, our ReLU doesn't.
- Where the stride is 2 and the side even, `SAME` padding adds zeros below and on the right, ours
  all around. So each of the five such layers sees its input one of its own pixels further up and
  left: 31 pixels of the picture at stride 32.
- Beyond the picture's border lies the mean colour, not grey.

So these are weights to begin training with, not to predict with. Source: Howard et al. 2017,
"MobileNets", table 1; epsilon, pixels and padding as in TensorFlow's slim; numpy's NEP 1 for the
format.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from triscale.errors import UserError
from triscale.files import ZIP_ERRORS
from triscale.model.mobilenet import STAGES, width_of
from triscale.model.yolo import ModelConfig, skeleton
from triscale.pixels import NORMALISATIONS, InputConfig, Normalisation
from triscale.weights.contents import Weights, WeightsInfo, fold_normalisation, require_finite

SIZE = 224  # side of the pictures that it was trained with
INPUT = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixels from -1 to 1
EPSILON, OUR_EPSILON = 1e-3, 1e-5
MAX_BYTES = 1 << 30  # of all arrays together; at width 1 they have 17 MB
MAX_HEADER = 256  # bytes; numpy writes 118 for each of these arrays
CLASSIFIER = ("fc.weight.npy", "fc.bias.npy")  # may be there; not read
LEAVES = {
    "conv.weight": "conv.weight",
    "norm.weight": "bn.weight",
    "norm.bias": "bn.bias",
    "norm.running_mean": "bn.running_mean",
    "norm.running_var": "bn.running_var",
}


def read_tensorflow(path: Path) -> Weights:
    """The backbone in an `.npz`, of whatever width, for input with ImageNet's normalisation.

    No array is read before the headers of all have been found right, and nothing is unpickled.
    Raises UserError if the file can't be read or doesn't hold exactly this network.
    """
    try:
        with path.open("rb") as file:
            config, tensors = _read(file, path)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    require_finite(tensors, path=path)
    for name in [name for name in tensors if name.endswith("running_var")]:
        tensors[name] = (tensors[name].double() + (EPSILON - OUR_EPSILON)).float()
    info = WeightsInfo((), model=config, size=SIZE, input=InputConfig(), recipe={})
    new = NORMALISATIONS[info.input.normalise]
    return Weights(fold_normalisation(tensors, INPUT, new), info)


def _read(file: BinaryIO, path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The network by its shapes, and the arrays as they are, in our names."""
    try:
        with ZipFile(file) as archive:
            shapes = _shapes(archive, path)
            last = shapes.get("Conv2d_13_pointwise.conv.weight.npy", (0,))
            config = ModelConfig(f"mobilenet{width_of(max(last, default=0)) or 1.0}")
            state = skeleton(config, 1).state_dict()
            expected = {theirs: tuple(state[ours].shape) for ours, theirs in _names()}
            wrong = [n for n in {**expected, **shapes} if expected.get(n) != shapes.get(n)]
            if wrong := [name for name in wrong if name not in CLASSIFIER]:
                raise UserError(
                    f"{path}: {len(wrong)} arrays do not fit {config.backbone}, the first is "
                    f"{wrong[0]!r:.80} with shape {shapes.get(wrong[0], 'none')}, "
                    f"expected {expected.get(wrong[0], 'none')}"
                )
            return config, {ours: _array(archive, theirs) for ours, theirs in _names()}
    except UserError:
        raise
    except ZIP_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: expected a whole .npz with arrays of numbers, found none ({reason:.200})"
        ) from error


def _names() -> Iterator[tuple[str, str]]:
    """Our name and the archive's, for each tensor."""
    cells = [("stem", "Conv2d_0")]
    for i, rows in enumerate(STAGES):
        for block in range(len(rows)):
            layer = f"Conv2d_{len(cells) // 2 + 1}"
            for part in ("depthwise", "pointwise"):
                cells.append((f"stages.{i}.{block}.{part}", f"{layer}_{part}"))
    for ours, theirs in cells:
        for leaf, their_leaf in LEAVES.items():
            yield f"backbone.{ours}.{leaf}", f"{theirs}.{their_leaf}.npy"


def _shapes(archive: ZipFile, path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each array by name; UserError unless all are float32 and of the stated size."""
    members = archive.infolist()
    shapes = {member.filename: _shape(archive, member, path) for member in members}
    if len(shapes) < len(members):
        raise UserError(f"{path}: expected each array once, found two of one name")
    size = sum(member.file_size for member in members)
    if size > MAX_BYTES:
        raise UserError(f"{path}: expected at most {MAX_BYTES} bytes of arrays, found {size}")
    return shapes


def _shape(archive: ZipFile, member: ZipInfo, path: Path) -> tuple[int, ...]:
    where = f"{path}: {member.filename!r:.80}"
    if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise UserError(f"{where}: unknown compression {member.compress_type}")
    with archive.open(member) as file:
        try:
            # numpy warns where it has to guess
            with warnings.catch_warnings(action="error", category=UserWarning):
                version = npy.read_magic(file)
                shape, _, dtype = npy.read_array_header_1_0(file, max_header_size=MAX_HEADER)
        except Exception as error:  # it evaluates a Python literal, which can fail in many ways
            raise UserError(f"{where}: expected a plain array, found another header") from error
        if version != (1, 0):
            raise UserError(f"{where}: expected version (1, 0) of .npy, found {version}")
        size = file.tell() + math.prod(shape) * 4
    if dtype != np.dtype("<f4"):
        raise UserError(f"{where}: expected float32, found {dtype!s:.80}")
    if member.file_size != size:
        raise UserError(f"{where}: expected {size} bytes by its shape, found {member.file_size}")
    return shape


def _array(archive: ZipFile, name: str) -> Tensor:
    with archive.open(name) as file:
        return torch.from_numpy(npy.read_array(file, allow_pickle=False))
