"""The state of a run: everything that the rest of it depends on, in files that are never half.

A state is a pair in `RUN/last/`: `step-<n>.safetensors` with weights and velocities, and
`step-<n>.json` with the rest and the SHA-256 of the first. The JSON is written last, so it marks a
complete pair; the newest few are kept, and a damaged one is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from triscale.data.index import Index
from triscale.errors import UserError
from triscale.files import remove_leftovers, write_atomically
from triscale.weights.native import read_tensors, save_tensors


@dataclass(frozen=True)
class CheckpointConfig:
    """The `[checkpoint]` section; the end of each epoch is always a checkpoint."""

    every_steps: int = 0  # 0: not by steps
    every_minutes: float = 10.0  # 0: not by time
    keep: int = 2  # how many states stay on disk

    def __post_init__(self) -> None:
        if self.keep < 1 or self.every_steps < 0 or not self.every_minutes >= 0:
            raise UserError("checkpoint: expected keep >= 1, every_steps >= 0, every_minutes >= 0")


class State(NamedTuple):
    """A point between two steps of a run."""

    step: int  # steps done
    tensors: Mapping[str, Tensor]  # "model.*", "velocity.*"
    values: Mapping[str, Any]  # JSON: best mAP, meters, data fingerprint, versions


def save_state(folder: Path, state: State, *, keep: int) -> None:
    """Add a state to `folder` and remove all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = folder / f"step-{state.step:08d}.safetensors"
    save_tensors(tensors, state.tensors, {"format": "triscale-state-1"})
    values = {"step": state.step, "sha256": _sha256(tensors), **state.values}
    write_atomically(tensors.with_suffix(".json"), json.dumps(values, indent=1).encode())
    for old in sorted(folder.glob("step-*.json"))[:-keep]:
        old.unlink()  # first, so that a half-removed state is never taken for a whole one
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    for tensors in folder.glob("step-*.safetensors"):  # a killed process came no further
        if not tensors.with_suffix(".json").exists():
            tensors.unlink(missing_ok=True)
    remove_leftovers(folder)


def require_unused(run: Path) -> None:
    """UserError if the folder holds a run that has got somewhere."""
    if (run / "best.safetensors").exists() or any((run / "last").glob("step-*.json")):
        raise UserError(
            f"{run}: holds a run already; go on with --resume {run}, or choose another --out"
        )


def load_state(folder: Path) -> tuple[State, list[str]]:
    """The newest whole state in `folder`, and one line for each newer one that is damaged."""
    damaged: list[str] = []
    for path in sorted(folder.glob("step-*.json"), reverse=True):
        tensors = path.with_suffix(".safetensors")
        try:
            values = json.loads(path.read_bytes())
            if _sha256(tensors) != values["sha256"]:
                raise UserError(f"{tensors}: damaged (its SHA-256 is not that of {path.name})")
            return State(int(values["step"]), read_tensors(tensors)[0], values), damaged
        except (UserError, OSError, KeyError, TypeError, ValueError) as error:
            damaged.append(
                str(error) if isinstance(error, UserError) else f"{path}: damaged ({error})"
            )
    raise UserError("\n".join([f"{folder}: no whole state to resume from", *damaged]))


def fingerprint(index: Index) -> str:
    """A hash of what a split contains: names, sizes, boxes, labels."""
    digest = hashlib.sha256(json.dumps([index.classes, list(index.ids)]).encode())
    for array in (index.sizes, index.offsets, index.boxes, index.labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
