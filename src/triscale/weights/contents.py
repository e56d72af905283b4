"""What a weights file says, in our names, whatever its format; and what the formats share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from triscale.data.classes import COCO_CLASSES, VOC_CLASSES, require_names
from triscale.errors import UserError
from triscale.model.yolo import ModelConfig
from triscale.pixels import NORMALISATIONS, InputConfig, Normalisation

MIN_SIZE, MAX_SIZE = 32, 8192  # of a network input: the memory it takes grows with its square
MAX_TEXT_BYTES = 1 << 18  # of a .cfg or a list of names; Darknet's yolov3.cfg has 8,342
# where a backbone's first cell is; the first of these that is there
FIRST_LAYERS = ("backbone.stem", "backbone.stages.0.0", "backbone.stages.0")


class WeightsInfo(NamedTuple):
    """What has to be known about weights to use them."""

    classes: tuple[str, ...]  # () if the file has no outputs
    model: ModelConfig
    size: int  # side of the square network input
    input: InputConfig
    recipe: Mapping[str, Any]  # the sections of the recipe it was trained with
    named: bool = True  # False: the file has no names, `classes` are guessed from their number


class Weights(NamedTuple):
    """The content of a weights file."""

    tensors: Mapping[str, Tensor]  # float32: entries of YOLOv3.state_dict(), all or the first ones
    info: WeightsInfo

    def describe(self) -> str:
        """One line for people."""
        info = self.info
        network = info.model.backbone + (" with spp" if info.model.spp else "")
        numbers = sum(t.numel() for name, t in self.tensors.items() if not name.endswith("tracked"))
        if not info.classes:
            return f"the first layers of {network}, {numbers:,} numbers, no classes"
        names = ", ".join(info.classes[:5]) + (", ..." if len(info.classes) > 5 else "")
        assumed = "" if info.named else ", names assumed"
        return (
            f"{network}, {numbers:,} numbers, {len(info.classes)} classes ({names}){assumed}; "
            f"input {info.size}x{info.size}, {info.input.fit}, normalised as {info.input.normalise}"
        )


def class_names(number: int, given: Sequence[str] | None, *, path: Path) -> tuple[str, ...]:
    """Names for the classes of a file that has none: those given, VOC's 20, COCO's 80, numbers."""
    if given is not None:
        if len(given) != number:
            raise UserError(f"{path}: has {number} classes, {len(given)} names were given")
        return require_names(given, source=str(path))
    for known in (VOC_CLASSES, COCO_CLASSES):
        if len(known) == number:
            return known
    return tuple(f"class{i}" for i in range(number))


def read_names(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one on each line; UserError if it isn't such a file."""
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if not all(lines) or any("\ufffd" in line for line in lines):
        raise UserError(
            f"{path}: expected a class name in UTF-8 on each line, found {len(lines)} lines, "
            f"{sum(not line for line in lines)} of them empty"
        )
    return require_names(lines, source=str(path))


def read_text(path: Path) -> str:
    """The text of a small file; UserError if it can't be read or isn't small."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"{path}: expected a text of at most {MAX_TEXT_BYTES} bytes, found more")
    return data.decode("utf-8-sig", errors="replace")  # comments may be in any encoding


def require_finite(tensors: Mapping[str, Tensor], *, path: Path) -> None:
    """UserError if a value is infinite or not a number, or a running variance is negative."""
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        low, high = tensor.aminmax()  # NaN spreads to both; 20 times faster than isfinite()
        if not (low.isfinite() and high.isfinite()):
            raise UserError(f"{path}: {name} has values that are not finite numbers")
        if name.endswith("running_var") and low < 0:
            raise UserError(f"{path}: {name}: expected at least 0, found {low.item():g}")


def require_size(size: object, *, source: str) -> int:
    """`size` as the side of a network input; UserError unless it can be one."""
    if type(size) is not int or not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(
            f"{source}: expected a size from {MIN_SIZE} to {MAX_SIZE} pixels, found {size!r:.80}"
        )
    return size


def with_normalisation(weights: Weights, name: Literal["imagenet", "unit"]) -> Weights:
    """The same function of pixels for a network input that is normalised as `name` says."""
    info = weights.info
    if info.input.normalise == name:
        return weights
    old, new = NORMALISATIONS[info.input.normalise], NORMALISATIONS[name]
    tensors = fold_normalisation(weights.tensors, old, new)
    return Weights(tensors, info._replace(input=replace(info.input, normalise=name)))


def fold_normalisation(
    tensors: Mapping[str, Tensor], old: Normalisation, new: Normalisation
) -> dict[str, Tensor]:
    """The tensors with a first cell that takes input normalised by `new` instead of by `old`.

    Exact but for the outermost pixels of the map: the zeros that pad the input stand for the mean
    colour, and that is another colour now.
    """
    first = next(name for name in FIRST_LAYERS if f"{name}.conv.weight" in tensors)
    weight = tensors[f"{first}.conv.weight"].double()  # (C, 3, k, k)
    old_mean, old_std = torch.tensor(old, dtype=torch.float64)
    new_mean, new_std = torch.tensor(new, dtype=torch.float64)
    # x_old = x_new * gain + shift; the shift passes the convolution and joins the running mean
    gain, shift = new_std / old_std, (new_mean - old_mean) / old_std
    constant = weight.sum((2, 3)) @ shift
    mean = tensors[f"{first}.norm.running_mean"].double() - constant
    return {
        **tensors,
        f"{first}.conv.weight": (weight * gain[:, None, None]).float(),
        f"{first}.norm.running_mean": mean.float(),
    }
