"""Training, top to bottom.

There is no Trainer to subclass and no hook to register: who wants another algorithm copies the
loop, which uses public names only. What each step sees is decided by the plan, what it costs by the
loss, how far it goes by the schedule; the loop brings them together, logs, validates and saves.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from triscale.anchors import Grid, make_grid
from triscale.assign import assign, ignored
from triscale.checkpoint import fingerprint, require_unused, save_state
from triscale.config import to_dict
from triscale.data.index import Index
from triscale.data.loader import make_loader
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
from triscale.errors import UserError
from triscale.evaluation import Evaluation, choose_metric, evaluate
from triscale.files import locked, remove_leftovers, write_atomically
from triscale.interrupt import Interrupted, stop_requests
from triscale.log import LOSSES, Meter, Narrator, RunLog
from triscale.loss import LossConfig, yolo_loss
from triscale.model.yolo import YOLOv3, build_model, same_network, skeleton
from triscale.optim import SGD, parameter_groups, set_lr
from triscale.pixels import InputConfig, network_input
from triscale.progress import Progress, restore, snapshot
from triscale.recipe import Recipe, dump_recipe
from triscale.reporting import (
    eval_line,
    require_finite_weights,
    train_line,
    train_record,
    write_pictures,
)
from triscale.schedule import learning_rate
from triscale.types import Batch, Losses
from triscale.weights.contents import WeightsInfo
from triscale.weights.native import save_weights

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Result(NamedTuple):
    """What a finished run leaves behind."""

    run: Path
    best: float  # best mAP; -1 if there was no validation
    last: Evaluation | None  # the newest validation of this process's lifetime


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
    saving, when Ctrl-C, SIGTERM or SIGUSR1 asks it to stop.
    """
    config = recipe.train
    device = choose_device(config.device)
    with (
        join_processes(device) as processes,
        narrator or Narrator(enabled=processes.is_main) as narrator,
        stop_requests() as stop,
        ExitStack() as stack,
    ):
        # --- what is trained on what ---
        index = training_index(recipe, data)
        plan = make_plan(recipe, index, processes)
        if not recipe.data.path:  # so that the run can be resumed from its folder alone
            path = str(data.root.absolute())
            recipe = replace(recipe, data=replace(recipe.data, path=path))
        if model is None:
            if config.init and not resume:
                raise UserError("train.init: give its network as `model`, or use `triscale train`")
            seeded = torch.Generator().manual_seed(config.seed)
            model = build_model(recipe.model, len(data.classes), generator=seeded)
        elif not same_network(model, skeleton(recipe.model, len(data.classes))):
            raise UserError(
                f"expected the network of the recipe's [model] with {len(data.classes)} classes, "
                f"found another one with {model.num_classes}"
            )
        if config.syncbn and processes.world_size > 1:
            synchronise_batch_norm(model)
        model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        groups = parameter_groups(model, recipe.optim)
        optimizer = SGD(groups, lr=recipe.optim.lr, momentum=recipe.optim.momentum)
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        info = WeightsInfo(data.classes, recipe.model, config.size, recipe.input, to_dict(recipe))
        metric = choose_metric(recipe.evaluate.metric, data.format)

        # --- where it starts ---
        identity = {
            "data": fingerprint(index),
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "input": to_dict(recipe.input),
            "anchors": to_dict(recipe.model)["anchors"],
        }
        now = Progress(
            plan.first_step(config.start_epoch),
            torch.zeros(len(LOSSES), dtype=torch.float64, device=device),
        )
        if resume:
            restore(run, identity, now, model, optimizer, scaler, narrator)
        log = None
        if processes.is_main:
            if not resume:
                require_unused(run)
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(run))
            remove_leftovers(run)
            write_atomically(run / "recipe.toml", dump_recipe(recipe).encode())
            log = RunLog(run / "log.jsonl", from_step=now.step)

        def save() -> None:
            if processes.is_main:
                state = snapshot(identity, now, model, optimizer, scaler)
                save_state(run / "last", state, keep=recipe.checkpoint.keep)

        if now.step >= plan.steps:
            narrator.say(f"step {now.step} of {plan.steps}: nothing is left to do")

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
        train_input = replace(recipe.input, fit="stretch")  # of crops, not of whole pictures
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
                input_config=train_input,
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
                sums = sum_tensor(now.losses, processes)
                means = (sums / now.steps).tolist()  # waits for the device
                record = train_record(means, now.step, epoch=epoch, rate=rate, meter=meter)
                shown = record["loss"]
                if log:
                    log.write(record)
                narrator.say(train_line(record))
            if end_of_epoch:
                require_finite_weights(model, now.step, epoch)
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
                        input_config=recipe.input,
                        batch_size=max(1, plan.batch_size // processes.world_size),
                        workers=config.workers,
                        device=device,
                        processes=processes,
                    )
                    score = f"_{last.mean:.4f}"
                    narrator.say(eval_line(last, epoch))
                    if log:
                        log.write(
                            {
                                "kind": "eval",
                                "epoch": epoch,
                                "step": now.step,
                                "metrics": last.metrics(),
                            }
                        )
                        write_pictures(run / "predictions", data.val, last, config.pictures)
                    if last.mean > now.best:
                        now.best = last.mean
                        now.best_lines += (f"{epoch:04d}:\t{last.mean:.4f}",)
                        if processes.is_main:
                            save_weights(run / "best.safetensors", model, info)
                            lines = "".join(f"{line}\n" for line in now.best_lines)
                            write_atomically(run / "best_map.log", lines.encode())
                # A run always leaves weights behind, even if nothing could be measured.
                unsaved = now.best < 0 and epoch == config.epochs - 1
                if processes.is_main and (
                    unsaved or _due(epoch, config.save_interval, config.epochs)
                ):
                    save_weights(run / f"epoch_{epoch:04d}{score}.safetensors", model, info)
            stopping = stop()
            if end_of_epoch or stopping or _save_due(recipe, now.step, saved_at):
                if not end_of_epoch:  # else they were looked at above
                    require_finite_weights(model, now.step, epoch)
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
    input_config: InputConfig,
    precision: str,
    global_batch: int,
) -> Losses:
    """The losses of a batch on its device: input, prediction, targets, loss."""
    size = batch.images.shape[1], batch.images.shape[2]
    images = network_input(batch, input_config)
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
