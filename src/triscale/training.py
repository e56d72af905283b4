"""Training, top to bottom.

There is no Trainer to subclass and no hook to register: who wants another algorithm copies the
loop, which uses public names only. What each step sees is decided by the plan, what it costs by the
loss, how far it goes by the schedule; the loop brings them together, logs, validates and saves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from triscale.anchors import Grid
from triscale.average import Average
from triscale.checkpoint import due_by_step, due_by_time, remove_states, require_unused, save_state
from triscale.config import to_dict
from triscale.data.decoded import open_decoded
from triscale.data.loader import make_loader
from triscale.data.open import Data
from triscale.data.plan import PlanSampler
from triscale.data.prefetch import on_device
from triscale.distributed import (
    choose_device,
    join_processes,
    meet,
    processes_here,
    share_tensors,
    synchronise_batch_norm,
)
from triscale.epoch import finish_epoch, require_best, require_room
from triscale.errors import UserError
from triscale.evaluation import Evaluation
from triscale.files import locked, remove_leftovers, write_atomically
from triscale.gradients import Gradients, Statistics
from triscale.guard import LAG, DivergedError, Echo, judge, require_finite_weights, roll_back
from triscale.interrupt import Interrupted, stop_requests
from triscale.log import LOSSES, Meter, Narrator
from triscale.loggers import Loggers
from triscale.model.compiled import compiled, compiling
from triscale.model.yolo import YOLOv3
from triscale.optim import hold, make_optimizer, parameter_groups, set_lr
from triscale.precision import settle_precision
from triscale.prepare import choose_network, make_plan, num_shapes, training_index
from triscale.progress import (
    Run,
    identify,
    lasting,
    networks,
    open_log,
    require_agreement,
    restore,
    snapshot,
    start,
)
from triscale.recipe import Recipe, dump_recipe, require_effect, require_unchanged
from triscale.reporting import epoch_line, live_lines, step_line, train_line, train_record
from triscale.schedule import rates_at
from triscale.step import (
    batch_losses,
    gpu_memory,
    keep_freed_memory,
    parts_of_share,
    try_largest,
)
from triscale.waiting import advice_on_waiting


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
    recipe.log.require_installed()
    if not resume:
        require_effect(recipe)
    if resume and recipe.train.precision == "auto":  # another choice would be another run
        raise UserError(f"train.precision: resume with what 'auto' chose, see {run}/recipe.toml")
    device = choose_device(recipe.train.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and exchanges go by the current one
    with (
        join_processes(device) as processes,
        narrator or Narrator(enabled=processes.is_main) as narrator,
        stop_requests() as stop,
        ExitStack() as stack,
    ):
        if not recipe.data.path:  # so that the run can be resumed from its folder alone
            path = str(data.root.absolute())
            recipe = replace(recipe, data=replace(recipe.data, path=path))
        index = training_index(recipe, data)
        plan = make_plan(recipe, index, processes)
        kept, kept_val = open_decoded(
            [index, data.val], recipe.data, say=narrator.say, processes=processes_here()
        )
        model = choose_network(recipe, data, model, resume=resume)
        if recipe.train.syncbn and processes.world_size > 1:
            if recipe.train.compile:
                raise UserError(
                    "train.compile: batch norms that talk to other processes can't be compiled; "
                    "use --set train.syncbn=false or --set train.compile=false"
                )
            synchronise_batch_norm(model)
        if recipe.train.compile:
            stack.enter_context(compiling(num_shapes(recipe)))
        model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        keep_freed_memory(device, one_shape=not recipe.augment.random_shape)
        recipe, said = settle_precision(recipe, model, device=device, processes=processes)
        if said:
            narrator.say(said)
        optim = recipe.optim
        groups = parameter_groups(
            model,
            optim,
            biases_apart=recipe.schedule.warmup_bias_lr > 0,
            begins=plan.first_step(recipe.train.start_epoch),
            thaws=plan.first_step(recipe.schedule.frozen_epochs),
        )
        everything = Run(
            folder=run,
            recipe=recipe,
            data=data,
            index=index,
            decoded=(kept, kept_val),
            identity=identify(recipe, index, data.val),
            plan=plan,
            model=model,
            average=Average(model, decay=optim.ema) if optim.ema else None,
            optimizer=make_optimizer(groups, optim),
            scaler=torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "fp16"),
            device=device,
            processes=processes,
            narrator=narrator,
            loggers=Loggers(recipe.log, run, recipe=to_dict(lasting(recipe)), warn=narrator.warn),
            now=start(plan.first_step(recipe.train.start_epoch), device),
        )
        require_agreement(everything, resume=resume)
        if processes.is_main:  # the lock first: who holds it may be saving
            if not resume:
                run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(run))
            if not resume:
                require_unused(run)
                if (run / "recipe.toml").exists():  # of a run that came to nothing, or one's own
                    require_unchanged(run / "recipe.toml")
        if resume:
            restore(everything)
            narrator.say(f"resuming after step {everything.now.step}")
        else:
            for each in networks(everything).values():
                share_tensors(each.state_dict().values(), processes)
        if processes.is_main:
            for folder in (run, run / "predictions", run / "skipped"):
                remove_leftovers(folder)
            remove_states(run / "last", everything.now.step, keep=recipe.checkpoint.keep)
            require_room(everything)
            write_atomically(run / "recipe.toml", dump_recipe(lasting(recipe)).encode())
            stack.enter_context(everything.loggers)
        diverged_at = 0
        while True:
            try:
                return _train(everything, stop)
            except DivergedError as error:
                roll_back(everything, error, diverged_at=diverged_at)
                diverged_at = error.step


def _train(run: Run, stop: Callable[[], bool]) -> Result:
    """The loop, from where the run is to its end."""
    recipe, config, plan, now = run.recipe, run.recipe.train, run.plan, run.now
    model, device, processes, narrator = run.model, run.device, run.processes, run.narrator
    network = compiled(model) if config.compile else model  # the same tensors
    log = open_log(run)
    hold(model.backbone, run.optimizer, still=False)  # a run that went back may have left it held
    gradients, statistics = Gradients(model, notes=len(LOSSES) + 2), Statistics(model)
    echo, meter, last = Echo(lag=0 if device.type == "cpu" else LAG), Meter(), None
    advice = ""

    def going_on() -> None:
        # Processes that validate don't talk to each other; together they stop after the next step.
        if stop() and processes.world_size == 1:
            raise _interrupted(run)

    narrator.begin(f"{config.epochs} epochs", plan.steps, done=now.step)
    if now.pending is not None:
        last = finish_epoch(run, log, on_batch=going_on)
    if log:
        require_best(run)
    if now.step >= plan.steps:
        narrator.say(f"step {now.step} of {plan.steps}: nothing is left to do")
    else:
        try_largest(replace(run, model=network), gradients, statistics)

    batches = make_loader(
        run.index,
        PlanSampler(
            plan,
            start=now.step,
            stop=plan.steps,
            rank=processes.rank,
            world_size=processes.world_size,
        ),
        config=recipe.augment,
        workers=config.workers,
        decoded=run.decoded[0],
        pin_memory=device.type == "cuda",
    )
    grids: dict[tuple[int, int], Grid] = {}
    # gluoncv: --num-samples shortens the schedule only; by default its epochs are the plan's.
    scheduled = replace(plan, num_images=recipe.schedule.num_samples or plan.num_images)
    one = torch.ones(1, device=device)
    saved_at = time.monotonic()
    model.train()
    waiting_since = time.perf_counter()
    for batch in on_device(batches, device):
        waited = time.perf_counter() - waiting_since
        epoch = plan.epoch_of(now.step)
        rates = rates_at(
            now.step,
            base_lr=recipe.optim.lr,
            momentum=recipe.optim.momentum,
            config=recipe.schedule,
            epochs=config.epochs,
            first_step=scheduled.first_step,
        )
        set_lr(
            run.optimizer,
            rates.lr,
            bias_lr=rates.bias_lr,
            momentum=rates.momentum,
            step=now.step,
        )
        if frozen_epochs := recipe.schedule.frozen_epochs:
            hold(model.backbone, run.optimizer, still=epoch < frozen_epochs)
        size = batch.images.shape[1], batch.images.shape[2]
        if size not in grids:
            grids[size] = model.grid(size)

        # --- a step ---
        gradients.clear()
        statistics.keep()
        terms, wishes = gradients.notes.split([len(LOSSES), 2])  # summed over the processes
        for part in batch.split(parts_of_share(run)):
            losses = batch_losses(
                network, part, grids[size], recipe=recipe, global_batch=plan.batch_size
            )
            run.scaler.scale(losses.total).backward()
            terms += torch.stack(losses).detach()
        wishes[0].fill_(stop())
        wishes[1].fill_(processes.is_main and due_by_time(recipe.checkpoint, saved_at))
        gradients.exchange(processes)
        run.scaler.unscale_(run.optimizer)
        ok = gradients.finite()
        gradients.clear_unless(ok)
        statistics.restore_unless(ok)
        run.optimizer.step(ok=ok)
        if run.average:
            run.average.follow(now.step, ok=ok)
        run.scaler.update()
        # fp16 skips steps whose losses are good
        now.sums += torch.where(terms.isfinite().all(), torch.cat([terms, one]), 0.0)
        now.step += 1

        # --- what it says ---
        meter.add(images=plan.batch_size, data_seconds=waited)
        end_of_epoch = now.step == plan.first_step(epoch + 1)
        saving = end_of_epoch or due_by_step(recipe.checkpoint, now.step)
        stopping = False
        echo.send(now.step, gradients.notes, ok)
        for report in echo.receive(everything=saving):
            judge(run, report, log)
            meter.see(report.terms)
            if narrator.verbose:
                side = plan.size_of(report.step - 1)
                narrator.say(step_line(report.terms, report.step, side=side, ok=report.ok))
            stopping, saving = stopping or report.stop, saving or report.save
        if stopping or saving:
            for report in echo.receive(everything=True):
                judge(run, report, log)
            # where steps are being skipped is no place to go back to
            saving = saving and (end_of_epoch or not now.skipped)
        narrator.advance()
        left = meter.seconds_left(steps=plan.steps - now.step, epochs=config.epochs - epoch)
        if narrator.live:
            first, end = plan.first_step(epoch), plan.first_step(epoch + 1)
            narrator.part(f"epoch {epoch}", now.step - first, end - first)
            best = now.best_lines[-1] if now.best_lines else ""
            memory = gpu_memory(device)
            shown = live_lines(meter, rate=rates.lr, memory=memory, best=best, last=last)
            narrator.show(shown, left=left)
        if not advice and (advice := advice_on_waiting(run, meter.recent())):
            narrator.say(advice)
        if end_of_epoch or (now.step - plan.first_step(epoch)) % config.log_interval == 0:
            *sums, steps = now.sums.tolist()  # waits for the device
            if steps:
                means = [value / steps for value in sums]
                memory, _ = gpu_memory(device)
                record = train_record(
                    means, now.step, epoch=epoch, rate=rates.lr, meter=meter, memory=memory
                )
                if not narrator.live:
                    narrator.say(train_line(record, left=left))
                elif end_of_epoch:
                    narrator.say(epoch_line(record))
                if log:
                    log.write(record)

        # --- what happens between steps ---
        if saving or stopping:
            for each in networks(run).values():
                share_tensors(each.buffers(), processes)  # equal anyway with SyncBN
            require_finite_weights(run)
            if end_of_epoch:
                now.sums.zero_()
                now.pending = epoch
            if log:
                now.log = log.flush()
                save_state(run.folder / "last", snapshot(run), keep=recipe.checkpoint.keep)
            saved_at = time.monotonic()
        if stopping:
            meet(processes, device=device)  # a launcher ends all, the main one too, when one ends
            raise _interrupted(run)
        if end_of_epoch:
            last = finish_epoch(run, log, on_batch=going_on)
            meter.reset()
        waiting_since = time.perf_counter()
    return Result(run.folder, now.best, last)


def _interrupted(run: Run) -> Interrupted:
    if not run.processes.is_main:
        return Interrupted()  # one speaks for all
    return Interrupted(
        f"stopped after step {run.now.step}; go on with: triscale train --resume {run.folder}"
    )
