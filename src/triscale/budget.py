"""How many epochs fit into a given time: measured with the real network and the real pictures.

A few seconds of validation and of training steps, on a copy of the network and with a rate of zero,
so that nothing is left behind; a state's bytes written where the run will be. What follows from the
figures is arithmetic. A steady machine is assumed, and a little time kept back in case it isn't.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from triscale.average import Average
from triscale.choosing import EPOCHS, SIDES, Choice
from triscale.data.index import Index
from triscale.data.loader import make_loader
from triscale.data.open import Data
from triscale.data.plan import PlanSampler
from triscale.data.prefetch import on_device
from triscale.distributed import Processes, choose_device
from triscale.errors import UserError
from triscale.evaluation import choose_metric, evaluate
from triscale.files import naming
from triscale.gradients import Gradients, Statistics
from triscale.lengths import with_epochs, with_key
from triscale.model.yolo import YOLOv3
from triscale.optim import make_optimizer, parameter_groups, set_lr, state_tensors
from triscale.precision import settle_precision
from triscale.prepare import make_plan, training_index
from triscale.recipe import Recipe
from triscale.step import batch_losses, keep_freed_memory

SPARE = 0.05  # of the time, for what isn't measured
VALIDATION = 0.1  # of the time at most, but for the first and the last epoch's
_WARM_SECONDS = 2.0  # at most, but for the step that reaches them
_TRAINING_SECONDS, _VALIDATION_SECONDS = 4.0, 1.0  # of a measurement, at least


class Speed(NamedTuple):
    """What was measured."""

    pictures: float  # per second of training
    validation: float  # seconds; 0: there is none
    saving: float  # seconds for a state


def fit_minutes(
    recipe: Recipe,
    data: Data,
    model: YOLOv3,
    *,
    minutes: float,
    spent: float,
    folder: Path,
    given: Collection[str] = (),
    at_size: Callable[[int], Recipe] | None = None,
) -> tuple[Recipe, list[str]]:
    """The recipe with as many epochs as fit into the time, and lines for the user.

    `spent` seconds of it are gone already; the run will be in `folder`. `model` is only looked at.
    Keys in `given` stay as they are. Where only a few epochs would fit, the pictures are made
    smaller if `at_size` says what the recipe is then. Raises UserError if there is no time for one
    epoch.
    """
    began, pictures = time.perf_counter(), len(training_index(recipe, data))
    end = began - spent + minutes * 60 * (1 - SPARE)
    recipe, speed, said = measure(recipe, data, model, folder=folder, until=end)
    if at_size:
        epochs = (end - time.perf_counter()) * speed.pictures / pictures
        if smaller := smaller_size(recipe, epochs):
            recipe = at_size(smaller.value)
            recipe, speed, said = measure(recipe, data, model, folder=folder, until=end)
            said.append(str(smaller))
    now = time.perf_counter()
    spent, left = spent + now - began, end - now
    epoch = pictures / speed.pictures + speed.saving
    # a new best is saved besides
    validation = speed.validation + speed.saving / 2 if speed.validation else 0.0
    fixed = "train.val_interval" in given
    epochs, every = most_epochs(
        left, epoch=epoch, validation=validation, interval=recipe.train.val_interval, fixed=fixed
    )
    figures = f"{speed.pictures:.3g} img/s"
    if validation:
        figures += f", validation {validation:.2g} s"
    if not epochs:
        needed = math.ceil((spent + epoch + validation) / (1 - SPARE) / 6) / 10
        raise UserError(
            f"--minutes {minutes:g}: too few for one epoch of {pictures} pictures ({figures}); "
            f"it needs {needed:g}"
        )
    recipe = with_epochs(recipe, recipe.train.start_epoch + epochs, given=given)
    recipe = with_key(recipe, "train.val_interval", every)
    often = f", a validation every {every} epochs" if every > 1 and validation else ""
    line = f"{epochs} {'epoch fits' if epochs == 1 else 'epochs fit'} into {minutes:g} "
    line += "minute" if minutes == 1 else "minutes"
    return recipe, [*said, f"{line} ({figures}{often})"]


def smaller_size(recipe: Recipe, epochs: float) -> Choice | None:
    """The side at which `EPOCHS[0]` epochs fit where `epochs` do at the recipe's, or the least.

    A step's time grows with the area. None: no smaller one is wanted, or random shapes decide.
    """
    size, fewest = recipe.train.size, EPOCHS[0]
    side = max(SIDES[0], int(size * math.sqrt(max(0.0, epochs) / fewest)) // 32 * 32)
    if epochs >= fewest or side >= size or recipe.augment.random_shape:
        return None
    return Choice("train.size", side, f"at {size} only {epochs:.1f} epochs fit", "--size")


def most_epochs(
    seconds: float, *, epoch: float, validation: float, interval: int, fixed: bool = False
) -> tuple[int, int]:
    """How many epochs fit, 0 if none, and the epochs between two of their validations.

    `epoch` and `validation` are in seconds. The interval is made longer than `interval`, unless it
    is `fixed`, where the validations would otherwise take more than their part of the time.
    """
    validation = validation if interval else 0.0
    validations = max(2, int(seconds * VALIDATION / validation)) if validation else 2
    for epochs in range(max(0, int(seconds / epoch)), 0, -1):
        every = interval
        if validation and not fixed:
            # the first and the last epoch have one
            every = max(interval, math.ceil((epochs - 1) / (validations - 1)))
        count = math.ceil((epochs - 1) / every) + 1 if every else 0
        if epochs * epoch + count * validation <= seconds:
            return epochs, every
    return 0, interval


def measure(
    recipe: Recipe, data: Data, model: YOLOv3, *, folder: Path, until: float = math.inf
) -> tuple[Recipe, Speed, list[str]]:
    """The speeds of a run, the recipe with its precision settled, and a line that says so.

    After `until`, of time.perf_counter(), a first batch of each must do, although it is slow.
    """
    index, device = training_index(recipe, data), choose_device(recipe.train.device)
    make_plan(recipe, index, Processes())  # first: it knows whether the batch size is possible
    twin = copy.deepcopy(model).to(device)
    twin = twin.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    keep_freed_memory(device, one_shape=not recipe.augment.random_shape)
    recipe, said = settle_precision(recipe, twin, device=device, processes=Processes())
    validation = 0.0
    if data.val is not None and len(data.val) and recipe.train.val_interval:
        validation = validation_seconds(recipe, data, data.val, twin, until=until)
    pictures, state = training_speed(recipe, index, twin, until=until)
    saving = saving_seconds(state, folder)
    return recipe, Speed(pictures, validation, saving), [said] if said else []


def validation_seconds(
    recipe: Recipe, data: Data, index: Index, model: YOLOv3, *, until: float = math.inf
) -> float:
    """What a validation on all of `index` takes, from as many of its pictures as say enough."""

    def seconds(pictures: int) -> float:
        part = index.select(np.arange(pictures))
        began = time.perf_counter()
        evaluate(
            model,
            part,
            size=recipe.train.size,
            metric=choose_metric(recipe.evaluate.metric, data.format),
            config=recipe.evaluate,
            decode=recipe.decode,
            input_config=recipe.input,
            batch_size=recipe.train.batch_size,
            workers=recipe.train.workers,
        )
        return time.perf_counter() - began

    pictures = min(recipe.train.batch_size, len(index))
    each = seconds(pictures) / pictures  # slow, as the first: replaced if there is time
    while time.perf_counter() < until:
        took = seconds(pictures)
        each = took / pictures
        if pictures == len(index) or took > _VALIDATION_SECONDS:
            break
        pictures = min(4 * pictures, len(index))
    return each * len(index)


def training_speed(
    recipe: Recipe, index: Index, model: YOLOv3, *, until: float = math.inf
) -> tuple[float, dict[str, Tensor]]:
    """Pictures per second of training, at a size of middle area; and what a state has to hold.

    The loader's own speed shows as soon as what its workers read ahead is used up.
    """
    config, optim, device = recipe.train, recipe.optim, next(model.parameters()).device
    plan = replace(
        make_plan(recipe, index, Processes()),
        epochs=10**6,
        size=middle_size(recipe),
        augment=replace(recipe.augment, random_shape=False),
    )
    batches = make_loader(
        index,
        PlanSampler(plan, start=0, stop=plan.steps),
        config=plan.augment,
        workers=config.workers,
        pin_memory=device.type == "cuda",
    )
    grid = model.grid((plan.size, plan.size))
    gradients, statistics = Gradients(model, notes=1), Statistics(model)
    optimizer = make_optimizer(parameter_groups(model, optim), optim)
    set_lr(optimizer, 0.0)
    average = Average(model, decay=optim.ema) if optim.ema else None
    model.train()
    started = began = time.perf_counter()
    first, steps = 0, 0
    for step, batch in enumerate(on_device(batches, device)):
        now = time.perf_counter()
        if step and now > until:
            break
        if first:
            if step - first > 1 and now - began > _TRAINING_SECONDS:
                break
        elif step > 2 * config.workers or (step and now - started > _WARM_SECONDS):
            first, began = step, _now(device)
        gradients.clear()
        statistics.keep()
        for part in batch.split(min(config.accumulate, plan.batch_size)):
            losses = batch_losses(model, part, grid, recipe=recipe, global_batch=plan.batch_size)
            losses.total.backward()
        ok = gradients.finite()
        optimizer.step(ok=ok)
        if average:
            average.follow(step, ok=ok)
        steps = step + 1 - first
    speed = steps * plan.batch_size / (_now(device) - began)
    state = dict(model.state_dict()) | state_tensors(optimizer, model)
    others = average.network.state_dict() if average else {}
    return speed, state | {f"average.{name}": tensor for name, tensor in others.items()}


def middle_size(recipe: Recipe) -> int:
    """The side whose area is the mean of those that training sees."""
    shapes = recipe.augment
    if not shapes.random_shape:
        return recipe.train.size
    sides = np.arange(shapes.shape_min, shapes.shape_max + 1, shapes.shape_step)
    return round(math.sqrt((sides**2).mean()) / 32) * 32


def saving_seconds(tensors: Mapping[str, Tensor], folder: Path) -> float:
    """What writing a state beside `folder` takes, at the end of every epoch.

    The same work as `save_state`'s, but in a file without a name: if this process is killed, it is
    gone.
    """
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    with naming(there), tempfile.TemporaryFile(dir=there) as file:
        began = time.perf_counter()
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        file.write(save(plain))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        hashlib.file_digest(file, "sha256")
        return time.perf_counter() - began


def _now(device: torch.device) -> float:
    """The time when everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
