"""Training, top to bottom.

There is no Trainer to subclass and no hook to register: who wants another algorithm copies the
loop, which uses public names only. What each step sees is decided by the plan, what it costs by the
loss, how far it goes by the schedule; the loop brings them together, logs, validates and saves.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import triscale
from triscale.anchors import Grid, make_grid
from triscale.assign import assign, ignored
from triscale.checkpoint import State, fingerprint, load_state, save_state
from triscale.config import to_dict
from triscale.data.index import Index
from triscale.data.loader import load, make_loader
from triscale.data.open import Data
from triscale.data.plan import Plan, PlanSampler, subset
from triscale.decode import decode_boxes
from triscale.distributed import (
    Processes,
    choose_device,
    join_processes,
    share_buffers,
    sum_gradients,
    sum_tensor,
    synchronise_batch_norm,
)
from triscale.draw import draw_detections, draw_truth, write_picture
from triscale.errors import UserError
from triscale.evaluation import Evaluation, choose_metric, evaluate
from triscale.files import write_atomically
from triscale.interrupt import Interrupted, stop_requests
from triscale.log import LOSSES, Meter, Narrator, RunLog
from triscale.loss import LossConfig, yolo_loss
from triscale.model.yolo import YOLOv3, build_model
from triscale.optim import SGD, load_state_tensors, parameter_groups, set_lr, state_tensors
from triscale.pixels import network_input
from triscale.recipe import Recipe, dump_recipe
from triscale.schedule import learning_rate
from triscale.types import Batch, Losses
from triscale.weights.native import WeightsInfo, save_weights
from triscale.weights.native import load_state as load_model

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Result(NamedTuple):
    """What a finished run leaves behind."""

    run: Path
    best: float  # best mAP; -1 if there was no validation
    last: Evaluation | None  # the newest validation of this process's lifetime


@dataclass
class Progress:
    """What changes from step to step besides the weights, and is part of a checkpoint."""

    step: int  # steps done
    losses: Tensor  # (4,) float64, on the device: sums over the steps of this epoch
    steps: int = 0  # of this epoch that are in `losses`
    best: float = -1.0  # best mAP so far
    best_lines: tuple[str, ...] = ()  # of best_map.log


def train(
    recipe: Recipe,
    data: Data,
    run: Path,
    *,
    model: YOLOv3 | None = None,
    resume: bool = False,
    narrator: Narrator | None = None,
) -> Result:
    """Train on `data.train`, validate on `data.val`, write everything into the folder `run`.

    The network starts from `model`, or at random from `train.seed`, or with `resume` from the
    newest state in the folder. Raises UserError for what the user can mend, and Interrupted, after
    saving, when Ctrl-C or SIGTERM asks it to stop.
    """
    config = recipe.train
    device = choose_device(config.device)
    with (
        join_processes(device) as processes,
        narrator or Narrator(enabled=processes.is_main) as narrator,
        stop_requests() as stop,
    ):
        # --- what is trained on what ---
        index = training_index(recipe, data)
        plan = make_plan(recipe, index, processes)
        if model is None:
            seeded = torch.Generator().manual_seed(config.seed)
            model = build_model(recipe.model, len(data.classes), generator=seeded)
        if config.syncbn and processes.world_size > 1:
            synchronise_batch_norm(model)
        model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        groups = parameter_groups(model, recipe.optim)
        optimizer = SGD(groups, lr=recipe.optim.lr, momentum=recipe.optim.momentum)
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        info = WeightsInfo(data.classes, recipe.model, config.size, to_dict(recipe))
        metric = choose_metric(recipe.evaluate.metric, data.format)

        # --- where it starts ---
        identity = {"data": fingerprint(index), "batch_size": plan.batch_size, "seed": plan.seed}
        now = Progress(
            plan.first_step(config.start_epoch),
            torch.zeros(len(LOSSES), dtype=torch.float64, device=device),
        )
        if resume:
            _restore(run, identity, now, model, optimizer, scaler, narrator)
        log = None
        if processes.is_main:
            run.mkdir(parents=True, exist_ok=True)
            write_atomically(run / "recipe.toml", dump_recipe(recipe).encode())
            log = RunLog(run / "log.jsonl", from_step=now.step)

        def save() -> None:
            if processes.is_main:
                state = _snapshot(identity, now, model, optimizer, scaler)
                save_state(run / "last", state, keep=recipe.checkpoint.keep)

        # --- the loop ---
        batches = make_loader(
            index,
            PlanSampler(
                plan,
                start=now.step,
                stop=plan.steps,
                rank=processes.rank,
                world_size=processes.world_size,
            ),
            config=recipe.augment,
            workers=config.workers,
            pin_memory=device.type == "cuda",
        )
        grids: dict[tuple[int, int], Grid] = {}
        # gluoncv: --num-samples shortens the schedule only; by default its epochs are the plan's.
        scheduled = replace(plan, num_images=recipe.schedule.num_samples or plan.num_images)
        meter, last, saved_at, shown = Meter(), None, time.monotonic(), math.nan
        narrator.begin("training", plan.steps, done=now.step)
        model.train()
        waiting_since = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - waiting_since
            epoch = plan.epoch_of(now.step)
            rate = learning_rate(
                now.step,
                base_lr=recipe.optim.lr,
                config=recipe.schedule,
                epochs=config.epochs,
                first_step=scheduled.first_step,
            )
            set_lr(optimizer, rate)
            size = batch.images.shape[1], batch.images.shape[2]
            if size not in grids:
                grids[size] = make_grid(model.anchors, size, device=device)
            losses = batch_losses(
                model,
                batch.to(device),
                grids[size],
                config=recipe.loss,
                precision=config.precision,
                global_batch=plan.batch_size,
            )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(losses.total).backward()
            sum_gradients(model, processes)
            scaler.step(optimizer)
            scaler.update()

            now.losses += torch.stack(losses).detach()
            now.step += 1
            now.steps += 1
            meter.add(images=plan.batch_size, data_seconds=waited)
            if device.type == "cpu":  # elsewhere reading the loss would wait for the device
                shown = now.losses.sum().item() / now.steps
            speed = meter.images_per_second()
            narrator.advance(f"loss {shown:.2f}, {speed:.1f} img/s", what=f"epoch {epoch}")

            # --- what happens between steps ---
            end_of_epoch = now.step == plan.first_step(epoch + 1)
            in_epoch = now.step - plan.first_step(epoch)
            if end_of_epoch or in_epoch % config.log_interval == 0:
                record = _train_record(now, epoch, rate, meter, processes)
                shown = record["loss"]
                if log:
                    log.write(record)
                narrator.say(_train_line(record))
            if end_of_epoch:
                now.losses.zero_()
                now.steps = 0
                share_buffers(model, processes)
                score = ""
                if data.val and _due(epoch, config.val_interval, config.epochs):
                    last = evaluate(
                        model,
                        data.val,
                        size=config.size,
                        metric=metric,
                        config=recipe.evaluate,
                        decode=recipe.decode,
                        batch_size=max(1, plan.batch_size // processes.world_size),
                        workers=config.workers,
                        device=device,
                        processes=processes,
                    )
                    score = f"_{last.mean:.4f}"
                    narrator.say(_eval_line(last, epoch))
                    if log:
                        log.write(
                            {
                                "kind": "eval",
                                "epoch": epoch,
                                "step": now.step,
                                "metrics": last.metrics(),
                            }
                        )
                        _write_pictures(run / "predictions", data.val, last, config.pictures)
                    if last.mean > now.best:
                        now.best = last.mean
                        now.best_lines += (f"{epoch:04d}:\t{last.mean:.4f}",)
                        if processes.is_main:
                            save_weights(run / "best.safetensors", model, info)
                            lines = "".join(f"{line}\n" for line in now.best_lines)
                            write_atomically(run / "best_map.log", lines.encode())
                if processes.is_main and _due(epoch, config.save_interval, config.epochs):
                    save_weights(run / f"epoch_{epoch:04d}{score}.safetensors", model, info)
            stopping = stop()
            if end_of_epoch or stopping or _save_due(recipe, now.step, saved_at):
                save()
                saved_at = time.monotonic()
            if end_of_epoch:
                meter.reset()
            if stopping:
                raise Interrupted(
                    f"stopped after step {now.step}; go on with: triscale train --resume {run}"
                )
            waiting_since = time.perf_counter()
        return Result(run, now.best, last)


def batch_losses(
    model: YOLOv3,
    batch: Batch,
    grid: Grid,
    *,
    config: LossConfig,
    precision: str,
    global_batch: int,
) -> Losses:
    """The losses of a batch on its device: input, prediction, targets, loss."""
    size = batch.images.shape[1], batch.images.shape[2]
    images = network_input(batch)
    dtype = _PRECISIONS[precision]
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        predictions = model(images)
    targets = assign(batch.boxes, batch.labels, batch.weights, grid, size=size)
    with torch.no_grad():
        decoded = decode_boxes(predictions, grid)
    ignore = ignored(decoded, batch.boxes, batch.labels, threshold=config.ignore_iou)
    return yolo_loss(predictions, targets, ignore, config, global_batch=global_batch)


def training_index(recipe: Recipe, data: Data) -> Index:
    """The training split, or the part of it that `data.num_samples` asks for."""
    if data.train is None:
        raise UserError(f"{data.root}: there is no training split")
    wanted, there = recipe.data.num_samples, len(data.train)
    if not 0 <= wanted <= there:
        raise UserError(f"data.num_samples: {wanted} samples wanted, the split has {there}")
    return data.train.select(subset(there, wanted, recipe.train.seed)) if wanted else data.train


def make_plan(recipe: Recipe, index: Index, processes: Processes) -> Plan:
    """The plan of a run; UserError if the batch size does not go with the data or the processes."""
    config = recipe.train
    if config.batch_size > len(index):
        raise UserError(
            f"train.batch_size: {config.batch_size} is more than the {len(index)} training "
            f"pictures; use --batch-size {len(index)} or less"
        )
    if config.batch_size % processes.world_size:
        raise UserError(
            f"train.batch_size: {config.batch_size} does not divide among "
            f"{processes.world_size} processes"
        )
    return Plan(
        len(index), config.batch_size, config.epochs, config.seed, config.size, recipe.augment
    )


def _due(epoch: int, interval: int, epochs: int) -> bool:
    """Whether something done every `interval` epochs is due; the last epoch always is."""
    return interval > 0 and (epoch % interval == 0 or epoch == epochs - 1)


def _save_due(recipe: Recipe, step: int, saved_at: float) -> bool:
    every = recipe.checkpoint
    by_steps = every.every_steps > 0 and step % every.every_steps == 0
    return by_steps or 0 < every.every_minutes * 60 <= time.monotonic() - saved_at


def _train_record(
    now: Progress, epoch: int, rate: float, meter: Meter, processes: Processes
) -> dict[str, Any]:
    """A line of log.jsonl: means since the epoch began. Reading the losses waits for the device."""
    means = (sum_tensor(now.losses, processes) / now.steps).tolist()
    if not all(map(math.isfinite, means)):
        raise UserError(
            f"step {now.step} (epoch {epoch}): the loss is no longer a finite number "
            f"({', '.join(f'{n} {v:g}' for n, v in zip(LOSSES, means, strict=True))}); nothing was "
            "saved since. Try a lower learning rate (--set optim.lr=...) or a longer warm-up "
            "(--set schedule.warmup_epochs=...)"
        )
    return {
        "kind": "train",
        "step": now.step,
        "epoch": epoch,
        "lr": rate,
        "loss": sum(means),
        **dict(zip(LOSSES, means, strict=True)),
        "images_per_second": round(meter.images_per_second(), 2),
        "data_seconds": round(meter.data_seconds, 3),
    }


def _train_line(record: dict[str, Any]) -> str:
    terms = " ".join(f"{name} {record[name]:.3f}" for name in LOSSES)
    return (
        f"[epoch {record['epoch']}] step {record['step']} lr {record['lr']:.2e} "
        f"loss {record['loss']:.3f} ({terms}) {record['images_per_second']:.1f} img/s, "
        f"waited {record['data_seconds']:.1f} s for data"
    )


def _eval_line(evaluation: Evaluation, epoch: int) -> str:
    classes = ", ".join(f"{name} {ap:.3f}" for name, ap in evaluation.per_class.items())
    return f"[epoch {epoch}] {evaluation.metric} mAP {evaluation.mean:.4f} ({classes})"


def _snapshot(
    identity: dict[str, Any],
    now: Progress,
    model: YOLOv3,
    optimizer: SGD,
    scaler: torch.amp.GradScaler,
) -> State:
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


def _restore(
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
        if state.values[key] != value:
            what = "the training data" if key == "data" else f"train.{key}"
            raise UserError(f"{run}: {what} changed since the run began; it can't go on exactly")
    weights = {k[6:]: v for k, v in state.tensors.items() if k.startswith("model.")}
    load_model(model, weights, source=str(run / "last"))
    load_state_tensors(optimizer, model, state.tensors)
    scaler.load_state_dict(state.values["scaler"])
    now.step, now.steps = state.step, state.values["steps"]
    now.losses += torch.tensor(state.values["losses"], dtype=now.losses.dtype).to(now.losses)
    now.best, now.best_lines = state.values["best"], tuple(state.values["best_lines"])
    narrator.say(f"resuming after step {state.step}")


def _write_pictures(folder: Path, index: Index, evaluation: Evaluation, count: int) -> None:
    """Some pictures of the split, evenly spread: true boxes in white, detections in colour."""
    folder.mkdir(exist_ok=True)
    for k in range(min(count, len(index))):
        image = k * len(index) // min(count, len(index))
        sample = load(index, image)
        picture = draw_truth(sample.image, sample.boxes)
        found = evaluation.detections[image]
        picture = draw_detections(picture, found, classes=index.classes, min_score=0.3)
        write_picture(folder / f"{index.ids[image]}.jpg", picture)
