"""Our own weights files: safetensors with all that is needed to use them in the header.

The header carries the class names, the network, its anchors, its input, and the recipe, so that a
file alone is enough to evaluate or to predict. No pickle is involved, in reading or in writing.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from triscale.config import build, to_dict
from triscale.data.classes import require_names
from triscale.errors import UserError
from triscale.files import open_regular, replace_atomically
from triscale.model.yolo import ModelConfig, YOLOv3, skeleton
from triscale.pixels import InputConfig
from triscale.weights.contents import Weights, WeightsInfo, require_finite, require_size

_FORMAT = "triscale-weights-1"
_MAX_BYTES = 1 << 40
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def save_weights(path: Path, model: YOLOv3, info: WeightsInfo) -> None:
    """Write the weights of `model` and their header to `path`, atomically."""
    write_native(path, Weights(model.state_dict(), info))


def write_native(path: Path, weights: Weights) -> None:
    """Write weights and their header to `path`, atomically."""
    info = weights.info
    header = {
        "format": _FORMAT,
        "classes": json.dumps(info.classes),
        "named": json.dumps(info.named),
        "model": json.dumps(to_dict(info.model)),
        "anchors": json.dumps(skeleton(info.model, 1).anchors),  # for other programs
        "size": json.dumps(info.size),
        "input": json.dumps(to_dict(info.input)),
        "recipe": json.dumps(info.recipe),
    }
    save_tensors(path, weights.tensors, header, seal=True)


def read_native(path: Path) -> Weights:
    """The content of a file that `write_native` wrote; UserError if it isn't one."""
    with ThreadPoolExecutor(2) as pool:  # hashing takes as long as all the rest
        hashed = pool.submit(_data_sha256, path)
        tensors, header = read_tensors(path)
        finite = pool.submit(require_finite, tensors, path=path)
    if header.get("format") != _FORMAT:
        raise UserError(
            f"{path}: expected a weights file of triscale ({_FORMAT}), "
            f"found format {header.get('format', 'not stated')}"
        )
    if header.get("sha256", found := hashed.result()) != found:
        raise UserError(f"{path}: damaged (the SHA-256 of its tensors isn't the one it states)")
    try:
        info = WeightsInfo(
            classes=require_names(json.loads(header["classes"]), source=f"{path}: classes"),
            model=build(ModelConfig, json.loads(header["model"]), where=f"{path}: model"),
            size=require_size(json.loads(header["size"]), source=str(path)),
            input=build(InputConfig, json.loads(header.get("input", "{}")), where=f"{path}: input"),
            recipe=_sections(json.loads(header["recipe"])),
            named=json.loads(header.get("named", "true")) is True,
        )
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: the header is damaged ({error})") from error
    except RecursionError as error:
        raise UserError(f"{path}: the header is damaged (nested too deeply)") from error
    for name, tensor in tensors.items():
        counter = name.endswith("num_batches_tracked")
        if tensor.dtype not in ((torch.int64,) if counter else _FLOATS):
            wanted = "int64" if counter else "floating point"
            raise UserError(f"{path}: {name}: expected {wanted}, found {tensor.dtype}")
    finite.result()
    return Weights(tensors, info)


def _sections(recipe: Any) -> dict[str, dict[str, Any]]:
    """The recipe of a header: tables by name."""
    return {str(name): dict(section) for name, section in recipe.items()}


def load_state(model: YOLOv3, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Put `tensors` into `model`; UserError unless every name and shape fits.

    The counters of batches, which other programs' files don't have, may be missing. A network on
    the meta device takes the tensors as they are, others copy them.
    """
    expected = model.state_dict()
    counters = [name for name in expected if name.endswith("num_batches_tracked")]
    # one for each: tensors that share memory can't be saved
    tensors = {**{name: torch.tensor(0) for name in counters}, **tensors}
    wrong = sorted(set(expected) ^ set(tensors)) or [
        name for name, tensor in tensors.items() if tensor.shape != expected[name].shape
    ]
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} tensors do not fit the network, the first is {wrong[0]}"
        )
    floats = {name: t.float() for name, t in tensors.items() if t.is_floating_point()}
    model.load_state_dict({**tensors, **floats}, assign=next(model.parameters()).is_meta)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: dict[str, str], *, seal: bool = False
) -> None:
    """Write named tensors and a header of texts to a safetensors file, atomically.

    With `seal` the header also gets the SHA-256 of the tensors, as `sha256`.
    """
    # channels-last weights are stored in the usual order; detached copies share no memory
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # not save_file: its files are readable by their owner only, and its errors are not OSErrors
    data = memoryview(save(plain, metadata=header))
    length = 8 + int.from_bytes(data[:8], "little")
    # The library writes the texts in an order that changes; equal content shall be equal bytes.
    described = json.loads(bytes(data[8:length]))
    digest = {"sha256": hashlib.sha256(data[length:]).hexdigest()} if seal else {}
    described["__metadata__"] = {**header, **digest}
    text = json.dumps(described, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors aligned

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.write(data[length:])

    replace_atomically(path, write)


def is_whole(path: Path) -> bool:
    """Whether the tensors of a sealed file are those that were written, bit for bit."""
    try:
        return read_tensors(path)[1].get("sha256") == _data_sha256(path)
    except (UserError, OSError):
        return False


def _data_sha256(path: Path) -> str:
    """The SHA-256 of what follows the header of a safetensors file."""
    # Mapped and in one piece: a loop over blocks would wait for Python's lock after each of them.
    with (
        open_regular(path, limit=_MAX_BYTES) as file,  # a pipe would be waited for
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
        content[8 + int.from_bytes(content[:8], "little") :] as data,
    ):
        return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file; UserError if it can't be read."""
    open_regular(path, limit=_MAX_BYTES).close()  # a pipe would be waited for
    try:
        with safe_open(path, framework="pt") as file:
            names = cast("list[str]", file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
