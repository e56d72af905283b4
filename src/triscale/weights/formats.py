"""Weights files of every format that we know, told apart by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from triscale.errors import UserError
from triscale.files import locked, remove_leftovers
from triscale.model.yolo import YOLOv3, skeleton
from triscale.pixels import Fit
from triscale.weights import gluoncv, zoo
from triscale.weights.contents import Weights, WeightsInfo, class_names, require_size
from triscale.weights.darknet import beside, is_darknet, read_darknet, write_darknet
from triscale.weights.gluoncv import read_gluoncv, write_gluoncv
from triscale.weights.native import load_state, read_native, write_native
from triscale.weights.tensorflow import read_tensorflow

if TYPE_CHECKING:
    from triscale.log import Narrator

_READABLE = ".safetensors (triscale), .params (GluonCV), .weights or .conv.N (Darknet), .npz"
_WRITABLE = ".safetensors (triscale), .params (GluonCV) or .weights (Darknet)"


def read_weights(
    path: Path, *, cfg: Path | None = None, classes: Sequence[str] | None = None
) -> Weights:
    """The content of a weights file.

    `cfg` describes a Darknet file (by default the .cfg of the same name is looked for); `classes`
    replaces the class names. Raises UserError if the file can't be read or doesn't fit together.
    """
    suffix = path.suffix.lower()
    if is_darknet(path):
        return read_darknet(path, cfg=cfg, classes=classes)
    if cfg:
        raise UserError(f"{path}: a .cfg describes Darknet's weights only")
    if suffix == ".params":
        return read_gluoncv(path, classes=classes)
    if suffix == ".npz":
        weights = read_tensorflow(path)
    elif suffix == ".safetensors":
        weights = read_native(path)
    else:
        raise UserError(f"{path}: expected a weights file named {_READABLE}, found '{path.name}'")
    if classes is None:
        return weights
    names = class_names(len(weights.info.classes), classes, path=path)
    return weights._replace(info=weights.info._replace(classes=names, named=True))


def writer_of(path: Path) -> Callable[[Path, Weights], None]:
    """What writes the format that the name of `path` stands for; UserError if there is none."""
    if is_darknet(path):
        return write_darknet
    if path.suffix.lower() == ".params":
        return write_gluoncv
    if path.suffix.lower() == ".safetensors":
        return write_native
    raise UserError(f"{path}: expected a name that ends in {_WRITABLE}, found '{path.name}'")


def files_of(path: Path) -> tuple[Path, ...]:
    """All that writing weights to `path` may write: Darknet's come with their description."""
    texts = (beside(path, ".cfg"), beside(path, ".names")) if is_darknet(path) else ()
    return (path, *texts)


def lost_in(path: Path, weights: Weights) -> list[str]:
    """What the format of `path` has no place for, if it isn't what a reader assumes anyway."""
    info = weights.info
    lost = ["the recipe"] if info.recipe and path.suffix.lower() != ".safetensors" else []
    if info.classes and path.suffix.lower() == ".params":
        if info.classes != class_names(len(info.classes), None, path=path):
            lost.append("the class names")
        if info.size != gluoncv.SIZE:
            lost.append(f"the size, {info.size}")
        if info.input.fit != "stretch":
            lost.append(f"the fit, {info.input.fit}")
    return lost


def load_weights(path: Path) -> tuple[YOLOv3, WeightsInfo]:
    """The network of a weights file, on the CPU in evaluation mode, and what is known about it.

    Raises UserError when the file can't be read or doesn't hold a whole network.
    """
    weights = read_weights(path)
    info = weights.info
    if not info.classes:
        raise UserError(
            f"{path}: holds the first layers of a network only; training can start from it "
            "(triscale train --init)"
        )
    model = skeleton(info.model, len(info.classes))
    load_state(model, weights.tensors, source=str(path))
    return model.eval(), info


def convert(
    source: Path,
    target: Path,
    *,
    cfg: Path | None = None,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    fit: Fit | None = None,
) -> Weights:
    """Write the weights of `source` to `target`, each in the format of its name; returns them.

    `classes`, `size` and `fit` state what the source doesn't know or knows wrongly.
    """
    write = writer_of(target)
    if size is not None:
        require_size(size, source="--size")
    weights = read_weights(source, cfg=cfg, classes=classes)
    info = weights.info
    info = info._replace(
        size=size or info.size, input=replace(info.input, fit=fit or info.input.fit)
    )
    weights = weights._replace(info=info)
    write(target, weights)
    return weights


def fetch(name: str, *, narrator: Narrator, mirror: str | None = None) -> Path:
    """Published weights by name as our own file in the cache folder, downloaded if need be."""
    if path := zoo.cached(name):
        return path
    params = zoo.download(name, narrator=narrator, mirror=mirror)
    path = params.with_suffix(".safetensors")
    with locked(path.parent):
        remove_leftovers(path.parent)
        if not path.is_file():  # another process may have been faster
            convert(params, path)
            params.unlink()
    return path
