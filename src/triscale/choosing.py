"""What `triscale train DATA` decides by itself, each choice with its reason and what overrides it.

A recipe was tried on some data, on some machine. What depends on the data and the machine is chosen
here, from what is known before training begins: boxes, number of pictures, memory, cores. A choice
is a small function of the recipe so far and those facts; the constants are rules of thumb, which
`docs/recipes.md` lists.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from triscale.anchor_choice import BOXES_PER_ANCHOR, POOR_RECALL, objection, propose, shapes_of
from triscale.data.decoded import GIB, free_memory
from triscale.data.index import Index
from triscale.data.open import Data
from triscale.distributed import choose_device, processes_here
from triscale.engines.machine import cores
from triscale.kmeans import Shapes, fit_of, flat
from triscale.lengths import with_epochs, with_key
from triscale.model.yolo import ModelConfig, skeleton
from triscale.prepare import training_index
from triscale.recipe import Recipe

SIDES = range(224, 641, 32)
MOST_ON_CPU = 416  # pixels: the time of a step grows with the square
SMALL = 16  # pixels: a cell of YOLOv3-tiny's finest map, two of YOLOv3's
SMALL_SHARE = 0.01  # of the objects may be smaller
GPU_BATCHES = (16, 64)
CPU_MEMORY, GPU_MEMORY = 0.5, 0.8  # of what is free
# AdamW from random weights, batches of 8, where the recipe's rate, which is that of `tiny`, isn't
# the network's: with `modern` on BCCD, 0.003 and 0.01 gave mobilenet0.25 a VOC07 mAP of 82.0 and
# 84.4 on val.
RATES = {"mobilenet0.25": 0.01}
OVERHEAD = 1.4  # a step's memory over what autograd keeps: gradients on their way, the loss
STEPS, LEAST_STEPS = 128, 1000  # the first times the square root of the number of pictures
EPOCHS = (12, 300)
MANY_ON_CPU = 20_000  # steps: hours


class Choice(NamedTuple):
    """A key of the recipe with its value, why, and the flag that says otherwise."""

    key: str
    value: Any
    reason: str
    flag: str = ""  # empty: --set

    def __str__(self) -> str:
        plain = json.dumps(self.value) if not isinstance(self.value, str) else self.value
        value = plain.replace(".0,", ",").replace(".0]", "]")
        return f"{self.key}={value} ({self.reason}; {self.flag or f'--set {self.key}=...'})"


class Machine(NamedTuple):
    """What a run is going to have."""

    device: torch.device
    cores: int  # for each process
    memory: int | None = None  # bytes that a process may have on the device; None: not known
    name: str = ""  # of the GPU
    processes: int = 1


def look_at_machine(device: str) -> Machine:
    """What there is of `device` (cpu, cuda, cuda:N or auto) and beside it."""
    found, here = choose_device(device), processes_here()
    several = int(os.environ.get("WORLD_SIZE") or 1)
    memory, name = None, ""
    if found.type == "cuda":
        name = torch.cuda.get_device_name(found)
        # what is free differs between the processes of a run, and they must choose alike
        memory = torch.cuda.mem_get_info(found)[0 if several == 1 else 1]
    elif several == 1 and Path("/proc/meminfo").exists():
        memory = free_memory()
    return Machine(found, max(1, cores() // here), memory, name, several)


@dataclass(frozen=True)
class Facts:
    """What the choices go by."""

    base: Recipe  # before anything was given or chosen: its values belong together
    index: Index  # of the pictures to train on
    num_classes: int
    machine: Machine
    given: Collection[str] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether the run is on a GPU."""
        return self.machine.device.type == "cuda"

    @cached_property
    def shapes(self) -> Shapes:
        """(m, 2) width and height of the boxes, in parts of their pictures."""
        return shapes_of(self.index)


def choose(
    recipe: Recipe,
    data: Data,
    *,
    machine: Machine | None = None,
    given: Collection[str] = (),
    base: Recipe | None = None,
) -> tuple[Recipe, list[str]]:
    """The recipe fitted to the data and the machine (by default this one), a line for each choice.

    The keys in `given` ("train.size") stay as they are in the recipe. If it differs in them from
    the one it was made of, that is `base`: to another batch size belongs another learning rate,
    and to other epochs other lengths.
    """
    machine = machine or look_at_machine(recipe.train.device)
    if base and "train.epochs" in given:
        recipe = with_epochs(recipe, recipe.train.epochs, before=base.train.epochs, given=given)
    facts = Facts(base or recipe, training_index(recipe, data), len(data.classes), machine, given)
    lines: list[str] = []
    for ask in (
        *(_device, _size, _shapes, _batch_size, _rate, _epochs),
        *(_anchors, _workers, _precision, _backbone),
    ):
        for choice in ask(recipe, facts):
            if choice.key in given:
                continue
            if choice.key == "train.epochs":
                recipe = with_epochs(recipe, choice.value, given=given)
            else:
                recipe = with_key(recipe, choice.key, choice.value)
            lines.append(str(choice))
    if data.val is None:
        lines.append("no validation split: nothing is measured, the last weights are kept")
    return recipe, lines


# --- the choices, in the order in which they are made ---------------------------------------------


def _device(recipe: Recipe, facts: Facts) -> list[Choice]:
    machine = facts.machine
    memory = f" with {machine.memory / GIB:.0f} GiB free" if machine.memory else ""
    reason = f"{machine.name}{memory}" if facts.on_gpu else "the CPU; no GPU is used"
    return [Choice("train.device", recipe.train.device, reason, "--device")]


def _size(recipe: Recipe, facts: Facts) -> list[Choice]:
    if not len(facts.shapes):
        return []
    sides = np.sqrt(facts.shapes.prod(1))
    # the classes weigh alike, as they do in the metric
    labels = facts.index.labels
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.sum()
    own = max(SIDES[0], math.ceil(float(np.median(facts.index.sizes.max(1))) / 32) * 32)
    most = min(own, SIDES[-1] if facts.on_gpu else MOST_ON_CPU)
    options = [side for side in SIDES if side <= most]
    shares = [float(weights[sides * side < SMALL].sum()) for side in options]
    at = next((i for i, share in enumerate(shares) if share <= SMALL_SHARE), len(options) - 1)
    median = float(np.median(sides))
    reason = (
        f"the median object spans {median:.0%} of its picture, {median * options[at]:.0f} px then; "
        f"{shares[at]:.1%} are below {SMALL} px, classes weighing alike"
    )
    if shares[at] > SMALL_SHARE:
        reason += ", but the pictures are no larger" if own == most else ", but more takes long"
    return [Choice("train.size", options[at], reason, "--size")]


def _shapes(recipe: Recipe, facts: Facts) -> list[Choice]:
    """Random shapes lie about the size as they did about the recipe's."""
    sides = ["augment.shape_min", "augment.shape_max"]
    if not recipe.augment.random_shape or any(key in facts.given for key in sides):
        return []
    scale = recipe.train.size / facts.base.train.size
    reason = f"train.size is {scale:.2g} times the recipe's"
    found = [
        Choice(key, max(32, round(side * scale / 32) * 32), reason)
        for key, side in zip(
            sides, [recipe.augment.shape_min, recipe.augment.shape_max], strict=True
        )
    ]
    return found[::-1] if scale > 1 else found  # the least never passes the most


def _batch_size(recipe: Recipe, facts: Facts) -> list[Choice]:
    machine, pictures = facts.machine, len(facts.index)
    wanted, reason = recipe.train.batch_size, "the recipe's, for CPUs"
    if facts.on_gpu:
        wanted = min(max(_power_of_two(pictures // 16), GPU_BATCHES[0]), GPU_BATCHES[1])
        reason = f"{pictures} pictures, on a GPU"
    if pictures // 4 < wanted:
        wanted, reason = _power_of_two(pictures // 4), f"at most a quarter of {pictures} pictures"
    if machine.memory is not None:
        side = recipe.augment.shape_max if recipe.augment.random_shape else recipe.train.size
        each = OVERHEAD * bytes_per_picture(recipe.model, facts.num_classes, side)
        room = machine.memory * (GPU_MEMORY if facts.on_gpu else CPU_MEMORY)
        fitting = int(room / each) * recipe.train.accumulate * machine.processes
        if fitting < wanted:
            wanted = _power_of_two(fitting)
            reason = (
                f"a picture takes about {each / 2**20:.0f} MiB, "
                f"and {machine.memory / GIB:.1f} GiB are free"
            )
    return [Choice("train.batch_size", max(wanted, machine.processes), reason, "--batch-size")]


def _rate(recipe: Recipe, facts: Facts) -> list[Choice]:
    """Linear below the recipe's batch size (Goyal et al. 2017); with AdamW, whose steps don't grow
    with the gradients, a square root. Above it the recipe's.

    The linear rule holds while the rate is far from the one at which training diverges, whatever
    the batch; the recipes' are near it, and nothing above them has been measured. SGD here has the
    rate inside the velocity, which changes nothing for a rate that is constant or moves slowly.
    """
    base, before, now = facts.base.optim.lr, facts.base.train.batch_size, recipe.train.batch_size
    adamw, backbone, whose = recipe.optim.name == "adamw", recipe.model.backbone, "the recipe's"
    if adamw and not recipe.train.init and backbone in RATES:
        base, whose = RATES[backbone], f"that of {backbone}"
    if now >= before:
        larger = "; for larger ones no other has been measured" if now > before else ""
        return [Choice("optim.lr", base, f"{whose}, for batches of {before}{larger}")]
    ratio, how = now / before, "in proportion"
    if adamw:
        ratio, how = math.sqrt(ratio), "by the square root"
    reason = f"{whose} is {base:g} for batches of {before}; {how}"
    return [Choice("optim.lr", float(f"{base * ratio:.2g}"), reason)]


def _epochs(recipe: Recipe, facts: Facts) -> list[Choice]:
    pictures, batch = max(1, len(facts.index)), recipe.train.batch_size
    trained = bool(recipe.train.init)
    wanted = max(LEAST_STEPS, STEPS * math.sqrt(pictures)) / (2 if trained else 1)
    epochs = min(max(round(wanted * batch / pictures), EPOCHS[0]), EPOCHS[1])
    steps = epochs * pictures // batch
    reason = f"{pictures} pictures: {steps:,} steps"
    reason += ", half as many as from random weights" if trained else ""
    if steps > MANY_ON_CPU and not facts.on_gpu:
        reason += ", which take long on a CPU: --minutes N trains for a time"
    return [Choice("train.epochs", epochs, reason, "--epochs or --minutes")]


def _anchors(recipe: Recipe, facts: Facts) -> list[Choice]:
    if recipe.train.init or recipe.model.anchors:
        return []
    usual = skeleton(recipe.model, facts.num_classes).anchors
    shapes, number = facts.shapes * recipe.train.size, len(flat(usual))
    if len(shapes) < BOXES_PER_ANCHOR * number:
        return []
    recall, mean = fit_of(shapes, flat(usual))
    own = f"the network's own: {recall:.0%} of the boxes overlap one by half"
    if recall < POOR_RECALL:
        rng = np.random.default_rng(recipe.train.seed)
        found = propose(shapes, number, len(usual), rng=rng)
        against = objection(shapes, flat(usual), flat(found))
        if not against:
            better, better_mean = fit_of(shapes, flat(found))
            reason = (
                f"by k-means: {better:.0%} of the boxes overlap one by half, mean IoU "
                f"{better_mean:.2f}; {recall:.0%} and {mean:.2f} with the network's own"
            )
            return [Choice("model.anchors", found, reason, "--set model.anchors=[] for those")]
        own += f"; {against}"
    return [Choice("model.anchors", (), own)]


def _workers(recipe: Recipe, facts: Facts) -> list[Choice]:
    cores = facts.machine.cores
    workers = min(max(1, cores - 2), 12) if facts.on_gpu else min(cores // 2, 4)
    reason = f"{cores} {'core' if cores == 1 else 'cores'}"
    return [Choice("train.workers", workers, reason, "--workers")]


def _precision(recipe: Recipe, facts: Facts) -> list[Choice]:
    return [Choice("train.precision", "auto", "settled by a measurement when training begins")]


def _backbone(recipe: Recipe, facts: Facts) -> list[Choice]:
    if not facts.on_gpu or recipe.train.init or recipe.model.backbone != "tiny":
        return []
    return [Choice("model.backbone", "tiny", "the recipe's; darknet53 is slower and finds more")]


def _power_of_two(number: int) -> int:
    """The largest one that isn't above `number`, or 1."""
    return 1 << max(0, number.bit_length() - 1)


def bytes_per_picture(config: ModelConfig, num_classes: int, side: int) -> int:
    """What autograd keeps of a picture of `side` x `side` for the backward pass, in fp32.

    Found without computing anything: the network runs on the meta device.
    """
    model = skeleton(config, num_classes).train()
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # a tensor that two layers keep counts once

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            # PyTorch has no public name for which storage it is; here none has an address
            kept[tensor.untyped_storage()._cdata] = tensor  # pyright: ignore[reportPrivateUsage]
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.empty(1, 3, side, side, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
