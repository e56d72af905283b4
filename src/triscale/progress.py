"""What a run consists of, where it is, and how that becomes a state on disk and comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triscale
from triscale.checkpoint import State, fingerprint, load_state
from triscale.config import to_dict
from triscale.data.decoded import DecodedPictures
from triscale.data.index import Index
from triscale.data.open import Data
from triscale.data.plan import Plan
from triscale.distributed import Processes, share_tensors, share_value
from triscale.errors import UserError
from triscale.log import LOSSES, Narrator, RunLog
from triscale.model.yolo import YOLOv3
from triscale.optim import SGD, load_state_tensors, state_tensors
from triscale.recipe import Recipe
from triscale.weights.native import load_state as load_model


@dataclass
class Progress:
    """What changes from step to step besides the weights, and is part of a checkpoint."""

    step: int  # steps done
    # (5,) float64, on the device: each loss summed over this epoch's steps, and their number
    sums: Tensor
    best: float = -1.0  # best mAP so far
    best_lines: tuple[str, ...] = ()  # of best_map.log
    log: Mapping[str, Any] | None = None  # what log.jsonl holds; see RunLog
    skipped: int = 0  # the newest steps in a row that were skipped
    pending: int | None = None  # the epoch that has just ended, until it has been validated


@dataclass(frozen=True)
class Run:
    """Everything that training works on."""

    folder: Path
    recipe: Recipe
    data: Data
    index: Index  # the pictures of the plan
    # those of the plan and of validation that are kept, if any are
    decoded: tuple[DecodedPictures | None, DecodedPictures | None]
    identity: Mapping[str, Any]  # what it can't go on without; see `identify`
    plan: Plan
    model: YOLOv3
    optimizer: SGD
    scaler: torch.amp.GradScaler
    device: torch.device
    processes: Processes
    narrator: Narrator
    now: Progress


def open_log(run: Run) -> RunLog | None:
    """The run's log from where the run is, in the process that writes it."""
    if not run.processes.is_main:
        return None
    accept = run.recipe.checkpoint.accept_changes
    return RunLog(run.folder / "log.jsonl", mark=run.now.log, accept=accept)


def start(step: int, device: torch.device) -> Progress:
    """The progress of a run that begins at a step."""
    return Progress(step, torch.zeros(len(LOSSES) + 1, dtype=torch.float64, device=device))


def snapshot(run: Run) -> State:
    """The state of a run between two steps."""
    now = run.now
    weights = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    *losses, steps = now.sums.tolist()
    values = {
        **run.identity,
        "recipe": to_dict(lasting(run.recipe)),
        "losses": losses,
        "steps": int(steps),
        "pending": now.pending,
        "best": now.best,
        "best_lines": now.best_lines,
        "log": now.log,
        "scaler": run.scaler.state_dict(),
        "versions": {"triscale": triscale.__version__, "torch": torch.__version__},
    }
    return State(now.step, weights | state_tensors(run.optimizer, run.model), values)


def restore(run: Run) -> None:
    """Put the newest state of the run's folder, which the main process reads, into all of it."""
    values = None
    if run.processes.is_main:
        state, damaged = load_state(run.folder / "last")
        for line in damaged:
            run.narrator.say(f"warning: {line}")
        _require_same(run, state.values)
        weights = {k[6:]: v for k, v in state.tensors.items() if k.startswith("model.")}
        load_model(run.model, weights, source=str(run.folder / "last"))
        load_state_tensors(run.optimizer, run.model, state.tensors)
        values = dict(state.values)
    velocities = state_tensors(run.optimizer, run.model)
    share_tensors([*run.model.state_dict().values(), *velocities.values()], run.processes)
    values = share_value(values, run.processes, device=run.device)
    if values["scaler"]:  # empty: no fp16 so far
        run.scaler.load_state_dict(values["scaler"])
    now = run.now
    now.step, now.skipped, now.pending = values["step"], 0, values["pending"]
    now.sums.copy_(torch.tensor([*values["losses"], values["steps"]], dtype=torch.float64))
    now.best, now.best_lines = values["best"], tuple(values["best_lines"])
    now.log = values["log"]


# What a run can't go on without: by its key in a state, and as people call it.
_NAMES = {
    "data": "the training data",
    "val": "the validation data",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "input": "[input]",
    "anchors": "model.anchors",
    "names": "the names or the order of the pictures",
    "sizes": "the sizes of the pictures",
    "labels": "the boxes or classes of the objects",
}


def identify(recipe: Recipe, index: Index, val: Index | None) -> dict[str, Any]:
    """What makes a run this run and no other; a state of another one is refused."""
    return {
        "data": fingerprint(index),
        "val": fingerprint(val) if val else None,
        "batch_size": recipe.train.batch_size,
        "seed": recipe.train.seed,
        "input": to_dict(recipe.input),
        "anchors": to_dict(recipe.model)["anchors"],
    }


def lasting(recipe: Recipe) -> Recipe:
    """The recipe as it is written down: what was accepted once isn't accepted for ever."""
    return replace(recipe, checkpoint=replace(recipe.checkpoint, accept_changes=False))


def _require_same(run: Run, then: Mapping[str, Any]) -> None:
    """UserError, or if that is accepted a warning, unless the run is what it was."""
    changes = _changes(then, run.identity)
    if not changes:
        return
    text = f"{run.folder}: {'; '.join(changes)} changed since the run began"
    if not run.recipe.checkpoint.accept_changes:
        raise UserError(
            f"{text}; it can't go on exactly (with --set checkpoint.accept_changes=true it goes "
            "on all the same)"
        )
    run.narrator.say(f"warning: {text}")


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, as a person would say it."""
    found: list[str] = []
    for key, value in now.items():
        before = then.get(key, value)
        if before == value:
            continue
        name = _NAMES.get(key, key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            found.append(f"{name} ({', '.join(_changes(before, value))})")
        elif key in ("names", "sizes", "labels"):  # SHA-256 sums, which say nothing to a person
            found.append(name)
        else:
            found.append(f"{name} (from {_short(before)} to {_short(value)})")
    return found


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
