"""The state of a run: everything that the rest of it depends on, in files that are never half.

A state is a pair in `RUN/last/`: `step-<n>.safetensors` with weights, velocities and, if there is
one, the average of the weights, and `step-<n>.json` with the rest, the SHA-256 of the first and its
own. The JSON is written last, so it marks a complete pair; the newest few are kept, and a damaged
one is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from triscale.config import shown
from triscale.data.index import Index
from triscale.errors import UserError
from triscale.files import read_regular, remove_leftovers, sha256_of, write_atomically
from triscale.weights.native import read_tensors, save_tensors

_FORMAT = "triscale-state-2"
_MAX_JSON_BYTES = 1 << 27


@dataclass(frozen=True)
class CheckpointConfig:
    """The `[checkpoint]` section; the end of each epoch is always a checkpoint."""

    every_steps: int = 0  # 0: not by steps
    every_minutes: float = 10.0  # 0: not by time
    keep: int = 2  # how many states stay on disk
    accept_changes: bool = False  # go on with other data or settings than the run began with

    def __post_init__(self) -> None:
        if self.keep < 1 or self.every_steps < 0 or not self.every_minutes >= 0:
            raise UserError("checkpoint: expected keep >= 1, every_steps >= 0, every_minutes >= 0")


class State(NamedTuple):
    """A point between two steps of a run."""

    step: int  # steps done
    tensors: Mapping[str, Tensor]  # "model.*", "average.*", and the optimiser's
    values: Mapping[str, Any]  # JSON: best mAP, meters, data fingerprint, versions


def due_by_step(config: CheckpointConfig, step: int) -> bool:
    """Whether a state is due after so many steps."""
    return config.every_steps > 0 and step % config.every_steps == 0


def due_by_time(config: CheckpointConfig, saved_at: float) -> bool:
    """Whether a state is due now; the last one was saved at `saved_at` of the monotonic clock."""
    return 0 < config.every_minutes * 60 <= time.monotonic() - saved_at


def save_state(folder: Path, state: State, *, keep: int) -> None:
    """Add a state to `folder`, as its newest, and remove all but the newest `keep`."""
    folder.mkdir(exist_ok=True)  # not what it is in: if the run is gone, its owner must be told
    remove_halves(folder)  # first: they may be what fills the disk
    tensors = folder / f"step-{state.step:08d}.safetensors"
    save_tensors(tensors, state.tensors, {"format": _FORMAT})
    _write_values(tensors.with_suffix(".json"), state, sha256=sha256_of(tensors))
    remove_states(folder, state.step, keep=keep)


def remove_states(folder: Path, step: int, *, keep: int) -> None:
    """Remove all states but the newest `keep` up to `step`.

    Later ones couldn't be read, or the run would have gone on from them. They are put aside:
    perhaps it was the disk's fault, and not theirs.
    """
    states = sorted(folder.glob("step-*.json"))
    later = [path for path in states if path.stem > f"step-{step:08d}"]
    for path in later:
        for file in (path.with_suffix(".safetensors"), path):
            if file.exists():
                file.rename(file.with_name(f"damaged-{file.name}"))
    for path in states[: len(states) - len(later)][:-keep]:
        path.unlink()  # first, so that a half-removed state is never taken for a whole one
    remove_halves(folder)


def remove_halves(folder: Path) -> None:
    """Remove what a killed process was writing, or removing."""
    remove_leftovers(folder)
    for tensors in folder.glob("step-*.safetensors"):
        if not tensors.with_suffix(".json").exists():
            tensors.unlink(missing_ok=True)


def save_values(folder: Path, state: State) -> None:
    """Replace all but the tensors of a state that `save_state` wrote: they haven't changed."""
    path = folder / f"step-{state.step:08d}.json"
    _write_values(path, state, sha256=_unseal(path)["sha256"])


def _write_values(path: Path, state: State, *, sha256: str) -> None:
    values = {"format": _FORMAT, "step": state.step, "sha256": sha256, **state.values}
    write_atomically(path, _seal(values))


def has_state(run: Path) -> bool:
    """Whether the folder of a run holds something to go on from."""
    return any((run / "last").glob("step-*.json"))


def require_unused(run: Path) -> None:
    """UserError if the folder holds a run that has got somewhere."""
    if has_state(run):
        raise UserError(
            f"{run}: holds a run already; go on with --resume {run}, or choose another --out"
        )
    if (run / "best.safetensors").exists():  # with nothing to resume: only weights to be kept
        raise UserError(f"{run}: holds the weights of a run already; choose another --out")


def load_state(folder: Path) -> tuple[State, list[str]]:
    """The newest whole state in `folder`, and one line for each newer one that is damaged."""
    damaged: list[str] = []
    for path in sorted(folder.glob("step-*.json"), reverse=True):
        tensors = path.with_suffix(".safetensors")
        try:
            values = _unseal(path)
            step = int(values["step"])
            if values.get("format") != _FORMAT:
                found = shown(values.get("format"))
                raise UserError(f"{path}: written by another version of triscale ({found})")
            if not 0 <= step < 2**63:
                raise UserError(f"{path}: damaged (step {shown(step)})")
            if sha256_of(tensors) != values["sha256"]:
                raise UserError(f"{tensors}: damaged (its SHA-256 is not that of {path.name})")
            return State(step, read_tensors(tensors)[0], values), damaged
        except (
            *(UserError, OSError, LookupError, TypeError, ValueError, AttributeError),
            *(RecursionError, ArithmeticError),
        ) as error:
            damaged.append(
                str(error) if isinstance(error, UserError) else f"{path}: damaged ({error})"
            )
    start = "in another folder" if damaged else f"(triscale train DATA --out {folder.parent})"
    missing = f"{folder}: no whole state to resume from; start the run anew {start}"
    raise UserError("\n".join([missing, *damaged]))


def require_space(folder: Path, needed: int) -> None:
    """UserError if the disk of `folder` has no room for `needed` bytes more."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: the states and weights of this run need {needed / 1e6:,.0f} MB, "
            f"{free / 1e6:,.0f} MB are free; make room, choose another --out, or keep fewer: "
            "--set checkpoint.keep=1, --set train.save_interval=0"
        )


def fingerprint(index: Index) -> dict[str, Any]:
    """What a split contains, as numbers and SHA-256 sums: enough to tell what differs."""
    return {
        "classes": list(index.classes),
        "pictures": len(index),
        "boxes": len(index.boxes),
        "names": _digest(index.ids.data, index.ids.ends),
        "sizes": _digest(index.sizes),
        "labels": _digest(index.offsets, index.boxes, index.labels),
    }


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _seal(values: Mapping[str, Any]) -> bytes:
    """JSON with a hash of itself: with a flipped bit it may still be JSON."""
    digest = hashlib.sha256(json.dumps(values, indent=1).encode()).hexdigest()
    return json.dumps({**values, "self": digest}, indent=1).encode()


def _unseal(path: Path) -> dict[str, Any]:
    values = json.loads(read_regular(path, limit=_MAX_JSON_BYTES))
    digest = values.pop("self")
    if hashlib.sha256(json.dumps(values, indent=1).encode()).hexdigest() != digest:
        raise UserError(f"{path}: damaged (its SHA-256 is not the one it states)")
    return values
