"""Where a run is, and how that becomes a state on disk and comes back from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triscale
from triscale.checkpoint import State, load_state
from triscale.errors import UserError
from triscale.log import Narrator
from triscale.model.yolo import YOLOv3
from triscale.optim import SGD, load_state_tensors, state_tensors
from triscale.weights.native import load_state as load_model

# what a run can't go on without, as its states call it and as people do
_IDENTITY = {
    "data": "the training data",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "input": "[input]",
    "anchors": "model.anchors",
}


@dataclass
class Progress:
    """What changes from step to step besides the weights, and is part of a checkpoint."""

    step: int  # steps done
    losses: Tensor  # (4,) float64, on the device: sums over the steps of this epoch
    steps: int = 0  # of this epoch that are in `losses`
    best: float = -1.0  # best mAP so far
    best_lines: tuple[str, ...] = ()  # of best_map.log


def snapshot(
    identity: dict[str, Any],
    now: Progress,
    model: YOLOv3,
    optimizer: SGD,
    scaler: torch.amp.GradScaler,
) -> State:
    """The state of a run between two steps."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    values = {
        **identity,
        "losses": now.losses.tolist(),
        "steps": now.steps,
        "best": now.best,
        "best_lines": now.best_lines,
        "scaler": scaler.state_dict(),
        "versions": {"triscale": triscale.__version__, "torch": torch.__version__},
    }
    return State(now.step, weights | state_tensors(optimizer, model), values)


def restore(
    run: Path,
    identity: dict[str, Any],
    now: Progress,
    model: YOLOv3,
    optimizer: SGD,
    scaler: torch.amp.GradScaler,
    narrator: Narrator,
) -> None:
    """Put the newest state of a run into everything that trains."""
    state, damaged = load_state(run / "last")
    for line in damaged:
        narrator.say(f"warning: {line}")
    for key, value in identity.items():
        if state.values.get(key, value) != value:
            what = _IDENTITY[key]
            raise UserError(f"{run}: {what} changed since the run began; it can't go on exactly")
    weights = {k[6:]: v for k, v in state.tensors.items() if k.startswith("model.")}
    load_model(model, weights, source=str(run / "last"))
    load_state_tensors(optimizer, model, state.tensors)
    if state.values["scaler"]:  # empty: no fp16 so far
        scaler.load_state_dict(state.values["scaler"])
    now.step, now.steps = state.step, state.values["steps"]
    now.losses += torch.tensor(state.values["losses"], dtype=now.losses.dtype).to(now.losses)
    now.best, now.best_lines = state.values["best"], tuple(state.values["best_lines"])
    narrator.say(f"resuming after step {state.step}")
