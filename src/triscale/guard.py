"""Steps that are no numbers: noticed without waiting for the device, written down, skipped.

A step whose losses or gradients aren't finite changes nothing. What each step says about itself is
read when it has arrived on the host: on a GPU two steps later, so that the queue of work there
never runs dry. All processes read the same numbers, so all decide alike.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triscale.data.loader import collate, read
from triscale.errors import UserError
from triscale.files import write_atomically
from triscale.gradients import is_finite
from triscale.log import LOSSES, RunLog
from triscale.progress import Run, networks, open_log, restore
from triscale.step import batch_losses
from triscale.types import Draw

_PATIENCE = 3  # skipped steps in a row that end in a return to the last state
_MAX_FILES = 50  # about skipped steps
LAG = 2  # steps between the work on a GPU and the news of it


class DivergedError(Exception):
    """Training can't go on from where it is."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"step {step}: {what}")
        self.step = step


class Report(NamedTuple):
    """What a step says about itself, summed over the processes."""

    step: int  # counted from 1, as in the log
    terms: tuple[float, ...]  # the losses
    stop: bool  # some process was asked to stop
    save: bool  # it is time for a state
    ok: bool  # all losses and gradients are finite


class Echo:
    """Numbers on their way from the device to the host, where they are read `lag` steps later."""

    def __init__(self, *, lag: int) -> None:
        self._lag = lag
        self._sent: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def send(self, step: int, notes: Tensor, ok: Tensor) -> None:
        """Send `notes` (L + 2,) float32 (the losses, stop, save) and `ok` () bool of a step."""
        numbers = torch.cat([notes, ok.to(notes.dtype)[None]])  # (L + 3,)
        event = None
        if numbers.device.type == "cuda":
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            numbers = host.copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._sent.append((step, numbers, event))

    def receive(self, *, everything: bool = False) -> Iterator[Report]:
        """What has arrived, the oldest first; with `everything` also what must be waited for."""
        while len(self._sent) > (0 if everything else self._lag):
            step, numbers, event = self._sent.popleft()
            if event:
                event.synchronize()  # of an older step: the device has work in its queue
            *terms, stop, save, ok = numbers.tolist()
            yield Report(step, tuple(terms), stop > 0, save > 0, ok > 0)


def judge(run: Run, report: Report, log: RunLog | None) -> None:
    """Count and write down a step that was skipped; DivergedError when they become too many."""
    now, finite = run.now, all(map(math.isfinite, report.terms))
    # fp16: gradients overflow now and then, which is how its scaler finds the scale. To ask for
    # the scale waits for the device.
    if report.ok or (finite and run.scaler.is_enabled() and run.scaler.get_scale() >= 1):
        now.skipped = 0
        return
    now.skipped += 1
    wrong = [name for name, v in zip(LOSSES, report.terms, strict=True) if not math.isfinite(v)]
    what = f"the loss is no longer a finite number ({', '.join(wrong)})"
    if finite:
        what = "a gradient is no longer a finite number"
    if log:  # the main process
        log.write({"kind": "skipped", "step": report.step, "what": what})
        folder = run.folder / "skipped"
        folder.mkdir(exist_ok=True)
        see = f"see {folder}"
        if len(list(folder.iterdir())) < _MAX_FILES:  # each takes a pass over the batch
            see = f"see {_write_down(run, report, what, folder)}"
        run.narrator.warn(f"step {report.step}: {what}; skipped, {see}")
    if now.skipped >= _PATIENCE:
        raise DivergedError(what, report.step)


def require_finite_weights(run: Run) -> None:
    """DivergedError if a weight or statistic isn't finite: such a state must never be saved."""
    for network in networks(run).values():
        tensors = [t for t in network.state_dict().values() if t.is_floating_point()]
        if not all(bool(is_finite(tensor)) for tensor in tensors):
            raise DivergedError("a weight is no longer a finite number", run.now.step)


def roll_back(run: Run, error: DivergedError, *, diverged_at: int) -> None:
    """Return to the last state; UserError if there is none, or if that was done for this before.

    `diverged_at` is the step of the time before, 0 for the first time.
    """
    advice = (
        "Try a lower learning rate (--set optim.lr=...) or a longer warm-up "
        "(--set schedule.warmup_epochs=...)"
    )
    try:
        restore(run)
    except UserError as missing:
        raise UserError(f"{error}; {missing}. {advice}") from missing
    if run.now.step < diverged_at:
        raise UserError(
            f"{error}, again after going back to step {run.now.step}, which is the last state "
            f"saved. {advice}"
        ) from error
    run.narrator.warn(f"{error}; went back to step {run.now.step}")
    if log := open_log(run):
        log.write({"kind": "rollback", "step": run.now.step, "from": error.step})
        run.now.log = log.flush()


def _write_down(run: Run, report: Report, what: str, folder: Path) -> Path:
    """Everything that made the step, into a file of `folder`; the file's name."""
    step = report.step - 1
    draws = run.plan.draws(step)
    content = {
        "step": report.step,
        "epoch": run.plan.epoch_of(step),
        "what": what,
        "losses": _readable(report.terms),
        "size": run.plan.size_of(step),
        # alone, in evaluation mode and with the present weights: what breaks here is the culprit
        "pictures": [_picture(run, draw) for draw in draws],
    }
    path = folder / f"step-{report.step:08d}.json"
    write_atomically(path, json.dumps(content, indent=1).encode())
    return path


def _picture(run: Run, draw: Draw) -> dict[str, Any]:
    sample = read(run.index, draw, run.recipe.augment)
    batch = collate([sample]).to(run.device)
    grid = run.model.grid(draw.size)
    was_training = run.model.training
    run.model.eval()
    with torch.no_grad():
        losses = batch_losses(run.model, batch, grid, recipe=run.recipe, global_batch=1)
    run.model.train(was_training)
    partner: dict[str, Any] = {}
    if draw.partner is not None:
        partner["mixed_with"] = run.index.ids[draw.partner]
    if draw.tiles:
        partner["tiled_with"] = [run.index.ids[image] for image in draw.tiles]
    return {
        "id": run.index.ids[draw.index],
        "path": run.index.paths[draw.index],
        **partner,
        "ratio": draw.ratio,
        "seed": draw.seed,
        "boxes": sample.boxes.tolist(),
        "losses": _readable(torch.stack(losses).tolist()),
    }


def _readable(losses: tuple[float, ...] | list[float]) -> dict[str, float | str]:
    """The losses by name; JSON has no word for what isn't finite."""
    named = zip(LOSSES, losses, strict=True)
    return {name: value if math.isfinite(value) else str(value) for name, value in named}
