"""What a run consists of, where it is, and how that becomes a state on disk and comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triscale
from triscale.average import Average
from triscale.checkpoint import State, fingerprint, load_state
from triscale.config import to_dict
from triscale.data.decoded import DecodedPictures
from triscale.data.index import Index
from triscale.data.open import Data
from triscale.data.plan import Plan
from triscale.distributed import Processes, share_tensors, share_value
from triscale.errors import UserError
from triscale.log import LOSSES, Narrator, RunLog
from triscale.loggers import Loggers
from triscale.model.yolo import YOLOv3
from triscale.optim import Optimizer, load_state_tensors, state_tensors
from triscale.recipe import Recipe, make_recipe
from triscale.weights.native import load_state as load_model


@dataclass
class Progress:
    """What changes from step to step besides the weights, and is part of a checkpoint."""

    step: int  # steps done
    # (6,) float64, on the device: each loss summed over this epoch's steps, and their number
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
    average: Average | None  # of the model's weights
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    processes: Processes
    narrator: Narrator
    loggers: Loggers
    now: Progress


def open_log(run: Run) -> RunLog | None:
    """The run's log from where the run is, in the process that writes it."""
    if not run.processes.is_main:
        return None
    accept = run.recipe.checkpoint.accept_changes
    path = run.folder / "log.jsonl"
    return RunLog(path, mark=run.now.log, accept=accept, loggers=run.loggers)


def networks(run: Run) -> dict[str, YOLOv3]:
    """The network that is trained and, if there is one, its average, by their names in a state."""
    return {"model": run.model} | ({"average": run.average.network} if run.average else {})


def start(step: int, device: torch.device) -> Progress:
    """The progress of a run that begins at a step."""
    return Progress(step, torch.zeros(len(LOSSES) + 1, dtype=torch.float64, device=device))


def snapshot(run: Run) -> State:
    """The state of a run between two steps."""
    now = run.now
    weights = {
        f"{prefix}.{name}": tensor
        for prefix, network in networks(run).items()
        for name, tensor in network.state_dict().items()
    }
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
            run.narrator.warn(line)
        _require_same(run, state.values)
        for prefix, network in networks(run).items():
            # an average that is new to the run begins with the weights
            weights = _below(prefix, state.tensors) or _below("model", state.tensors)
            load_model(network, weights, source=str(run.folder / "last"))
        load_state_tensors(run.optimizer, run.model, state.tensors)
        values = dict(state.values)
    for network in networks(run).values():
        share_tensors(network.state_dict().values(), run.processes)
    share_tensors(state_tensors(run.optimizer, run.model).values(), run.processes)
    values = share_value(values, run.processes, device=run.device)
    if values["scaler"]:  # empty: no fp16 so far
        run.scaler.load_state_dict(values["scaler"])
    now = run.now
    now.step, now.skipped, now.pending = values["step"], 0, values["pending"]
    unknown = [0.0] * (len(LOSSES) - len(values["losses"]))  # to the version that wrote the state
    sums = [*values["losses"], *unknown, values["steps"]]
    now.sums.copy_(torch.tensor(sums, dtype=torch.float64))
    now.best, now.best_lines = values["best"], tuple(values["best_lines"])
    now.log = values["log"]
    if now.best_lines and (others := _measured_otherwise(run, values)):
        _count_anew(run, others)


def _measured_otherwise(run: Run, then: Mapping[str, Any]) -> list[str]:
    """What makes the scores to come others than those of a state, which they can't compete with."""
    before = to_dict(make_recipe(then["recipe"], source=f"{run.folder}: the state's recipe"))
    after = to_dict(run.recipe)
    for recipe in (before, after):  # whether it is the average that is measured, not its decay
        recipe["optim"]["ema"] = recipe["optim"]["ema"] > 0
    keys = [("train", "size"), ("optim", "ema")]
    keys += [(section, key) for section in ("decode", "evaluate") for key in after[section]]
    found = [f"{s}.{key}" for s, key in keys if before[s][key] != after[s][key]]
    return found + (["the validation data"] if then.get("val") != run.identity["val"] else [])


def _count_anew(run: Run, others: list[str]) -> None:
    """Begin a new best mark; the weights that have the old one stay, under another name."""
    best = run.folder / "best.safetensors"
    kept = run.folder / f"best_until_step_{run.now.step:08d}.safetensors"
    if run.processes.is_main and best.exists() and not kept.exists():
        best.rename(kept)
    verb = "is" if len(others) == 1 else "are"
    run.narrator.say(
        f"{', '.join(others)} {verb} not as before, so the best mAP is counted anew; weights of "
        f"{run.now.best:.4f} are kept in {kept.name}"
    )
    run.now.best, run.now.best_lines = -1.0, ()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those named `prefix.<name>`, by their names."""
    dotted = f"{prefix}."
    return {k.removeprefix(dotted): v for k, v in tensors.items() if k.startswith(dotted)}


# What a run can't go on without: by its key in a state, and as people call it.
_NAMES = {
    "resume": "whether it goes on",
    "data": "the training data",
    "val": "the validation data",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "input": "[input]",
    "anchors": "model.anchors",
    "scale_x_y": "model.scale_x_y",
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
        "scale_x_y": recipe.model.scale_x_y,
    }


def require_agreement(run: Run, *, resume: bool) -> None:
    """UserError in a process that isn't about to do what the main one does."""
    words = {
        f"{section}.{key}": value
        for section, values in to_dict(lasting(run.recipe)).items()
        for key, value in values.items()
    }
    for key in ("data.path", "train.device", "train.workers"):  # each machine may have its own
        words.pop(key)
    mine = {"resume": resume, **words, "data": run.identity["data"], "val": run.identity["val"]}
    theirs = share_value(mine, run.processes, device=run.device)
    if theirs != mine:
        differ = "; ".join(_changes(theirs, mine, words="{} there, {} here")) or "its version"
        raise UserError(
            f"{run.folder}: process {run.processes.rank} is about to do another run than the main "
            f"one: {differ}; all must see the same folders and get the same words, and what "
            "unlike machines choose by themselves must be given"
        )


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
    run.narrator.warn(text)


def _changes(
    then: Mapping[str, Any], now: Mapping[str, Any], *, words: str = "from {} to {}"
) -> list[str]:
    """What differs, as a person would say it."""
    found: list[str] = []
    for key, value in now.items():
        before = then.get(key, value)
        if before == value:
            continue
        name = _NAMES.get(key, key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            found.append(f"{name} ({', '.join(_changes(before, value, words=words))})")
        elif key in ("names", "sizes", "labels"):  # SHA-256 sums, which say nothing to a person
            found.append(name)
        else:
            found.append(f"{name} ({words.format(_short(before), _short(value))})")
    return found


def _short(value: Any) -> str:
    if value in (None, "", []):
        return "none"
    if isinstance(value, Mapping):  # of a split that there wasn't, or isn't any more
        return f"{value['pictures']} pictures"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
