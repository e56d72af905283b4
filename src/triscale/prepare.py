"""What a run needs before its first step: the pictures, the plan and the network of its recipe."""

from __future__ import annotations

import torch

from triscale.data.index import Index
from triscale.data.open import Data
from triscale.data.plan import Plan, subset
from triscale.distributed import Processes
from triscale.errors import UserError
from triscale.model.yolo import YOLOv3, build_model, same_network, skeleton
from triscale.recipe import Recipe


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
    if config.batch_size < processes.world_size:
        raise UserError(
            f"train.batch_size: {config.batch_size} is less than one picture for each of "
            f"{processes.world_size} processes"
        )
    return Plan(
        len(index), config.batch_size, config.epochs, config.seed, config.size, recipe.augment
    )


def choose_network(recipe: Recipe, data: Data, model: YOLOv3 | None, *, resume: bool) -> YOLOv3:
    """The network that was given, if it is the recipe's, or a new one."""
    if model is None:
        if recipe.train.init and not resume:
            raise UserError("train.init: give its network as `model`, or use `triscale train`")
        if recipe.schedule.frozen_epochs and not resume:
            raise UserError(
                "schedule.frozen_epochs: a backbone at random has nothing to keep; start from "
                "weights (--init), or use --set schedule.frozen_epochs=0"
            )
        seeded = torch.Generator().manual_seed(recipe.train.seed)
        return build_model(recipe.model, len(data.classes), generator=seeded)
    if not same_network(model, skeleton(recipe.model, len(data.classes))):
        raise UserError(
            f"expected the network of the recipe's [model] with {len(data.classes)} classes, "
            f"found another one with {model.num_classes}"
        )
    return model


def num_shapes(recipe: Recipe) -> int:
    """How many shapes of input the network may be given; parts of a batch differ by a picture."""
    shapes = recipe.augment
    sides = range(shapes.shape_min, shapes.shape_max + 1, shapes.shape_step)
    modes = 2 if recipe.schedule.frozen_epochs else 1  # the backbone's; each is compiled
    return 2 * modes * (len(sides) if shapes.random_shape else 1)
