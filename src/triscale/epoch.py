"""What follows an epoch: validation, the best weights, the weights that stay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import count

from triscale.checkpoint import require_space, save_values
from triscale.config import to_dict
from triscale.errors import UserError
from triscale.evaluation import Evaluation, choose_metric, evaluate
from triscale.files import write_atomically
from triscale.log import RunLog
from triscale.progress import Run, networks, snapshot
from triscale.report.during import describe_validation, keep_up
from triscale.report.found import Found
from triscale.reporting import eval_line, write_pictures
from triscale.weights.contents import WeightsInfo
from triscale.weights.native import is_whole, save_weights


def finish_epoch(
    run: Run, log: RunLog | None, *, on_batch: Callable[[], None]
) -> Evaluation | None:
    """Do what is due after the epoch `run.now.pending`, and mark it as done in the newest state.

    Done twice, because a process died in between, it leaves the same files as done once.
    """
    now, config, data = run.now, run.recipe.train, run.data
    epoch = now.pending
    assert epoch is not None
    info = WeightsInfo(
        data.classes, run.recipe.model, config.size, run.recipe.input, to_dict(run.recipe)
    )
    network = run.average.network if run.average else run.model
    found, score = None, ""
    batch_size = max(1, run.plan.batch_size // run.processes.world_size)
    share = -(-len(data.val or ()) // run.processes.world_size)  # the main process's
    seen = count(1)

    def each() -> None:
        run.narrator.part("validating", next(seen), -(-share // batch_size))
        on_batch()

    if data.val and _due(epoch, config.val_interval, config.epochs):
        began = time.monotonic()
        found = evaluate(
            network,
            data.val,
            size=config.size,
            metric=choose_metric(run.recipe.evaluate.metric, data.format),
            config=run.recipe.evaluate,
            decode=run.recipe.decode,
            input_config=run.recipe.input,
            batch_size=batch_size,
            workers=config.workers,
            decoded=run.decoded[1],
            device=run.device,
            processes=run.processes,
            on_batch=each,
        )
        score = "" if math.isnan(found.mean) else f"_{found.mean:.4f}"
        run.narrator.say(eval_line(found, epoch))
        if log:
            log.write(
                {"kind": "eval", "epoch": epoch, "step": now.step, "metrics": found.metrics()}
            )
            drawn = write_pictures(run.folder / "predictions", data.val, found, config.pictures)
            run.loggers.pictures(now.step, drawn)
        is_best = found.mean > now.best
        if is_best:
            now.best = found.mean
            now.best_lines += (f"{epoch:04d}:\t{found.mean:.4f}",)
            if log:
                save_weights(run.folder / "best.safetensors", network, info)
                _write_best_lines(run)
        if log and config.report:
            _report(run, found, seconds=time.monotonic() - began, is_best=is_best)
    # A run always leaves weights behind, even if nothing could be measured.
    unsaved = now.best < 0 and epoch == config.epochs - 1
    if log and (unsaved or _due(epoch, config.save_interval, config.epochs)):
        save_weights(run.folder / f"epoch_{epoch:04d}{score}.safetensors", network, info)
    now.pending = None
    if log:
        now.log = log.flush()
        save_values(run.folder / "last", snapshot(run))
    return found


def _report(run: Run, evaluation: Evaluation, *, seconds: float, is_best: bool) -> None:
    """Keep what the validation of `run.now.pending` found, and the page about the run."""
    assert run.data.val is not None
    about = describe_validation(evaluation, seconds=seconds, device=run.device)
    about |= {"epoch": run.now.pending, "step": run.now.step}
    about["train"] = {"pictures": len(run.index), "boxes": len(run.index.boxes)}
    found = Found(about, run.data.val, evaluation.detections)
    keep_up(run.folder, found, is_best=is_best, say=run.narrator.warn)


def require_best(run: Run) -> None:
    """UserError if the best weights so far are damaged or gone; best_map.log is made to be whole.

    They may be those of a validation that comes again.
    """
    now, best = run.now, run.folder / "best.safetensors"
    if not now.best_lines:
        return
    if not is_whole(best):
        if not run.recipe.checkpoint.accept_changes:
            raise UserError(
                f"{best}: damaged or gone; put it back, or go on without it with "
                "--set checkpoint.accept_changes=true: the best is then counted anew"
            )
        run.narrator.warn(f"{best}: damaged or gone; the best is counted anew")
        now.best, now.best_lines = -1.0, ()
        return
    _write_best_lines(run)


def _write_best_lines(run: Run) -> None:
    lines = "".join(f"{line}\n" for line in run.now.best_lines)
    write_atomically(run.folder / "best_map.log", lines.encode())


def require_room(run: Run) -> None:
    """UserError if the disk has no room for the states and weights that the run still writes."""
    config = run.recipe.train
    weights = sum(tensor.nbytes for tensor in run.model.state_dict().values())
    epochs = range(run.plan.epoch_of(run.now.step), config.epochs)
    kept = sum(_due(epoch, config.save_interval, config.epochs) for epoch in epochs)
    best = 2  # the new ones are written before the old ones go; so it is with the states
    kinds = len(networks(run)) + len(run.optimizer.state_names)  # each as large as the weights
    states = (run.recipe.checkpoint.keep + 1) * kinds
    there = sum(file.stat().st_size for file in (run.folder / "last").glob("*.safetensors"))
    require_space(run.folder, weights * (states + best + kept) - there)


def _due(epoch: int, interval: int, epochs: int) -> bool:
    """Whether something done every `interval` epochs is due; the last epoch always is."""
    return interval > 0 and (epoch % interval == 0 or epoch == epochs - 1)
