"""One step's work on a batch: the losses, the largest batch as a rehearsal, and its memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from triscale.anchors import Grid
from triscale.assign import assign, ignored
from triscale.decode import decode_boxes
from triscale.errors import OutOfMemoryError, ran_out_of_memory
from triscale.gradients import Gradients, Statistics
from triscale.heap import set_heap
from triscale.loss import yolo_loss
from triscale.model.yolo import YOLOv3
from triscale.normalise import network_input
from triscale.optim import state_tensors
from triscale.progress import Run
from triscale.recipe import Recipe
from triscale.types import Batch, Losses

# "auto" has become one of them before the first step
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def batch_losses(
    model: YOLOv3, batch: Batch, grid: Grid, *, recipe: Recipe, global_batch: int
) -> Losses:
    """The losses of a batch on its device: input, prediction, targets, loss.

    They are divided by `global_batch`, the number of pictures of the whole step.
    """
    size = batch.images.shape[1], batch.images.shape[2]
    # crops are stretched, whatever happens to whole pictures
    images = network_input(batch, replace(recipe.input, fit="stretch"))
    dtype = _PRECISIONS[recipe.train.precision]
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        predictions = model(images)
    targets = assign(
        batch.boxes,
        batch.labels,
        batch.weights,
        grid,
        size=size,
        config=recipe.assign,
        predictions=predictions,
    )
    with torch.no_grad():
        decoded = decode_boxes(predictions, grid)
    ignore = ignored(decoded, batch.boxes, batch.labels, threshold=recipe.loss.ignore_iou)
    return yolo_loss(predictions, targets, ignore, grid, recipe.loss, global_batch=global_batch)


def keep_freed_memory(device: torch.device, *, one_shape: bool = True) -> None:
    """Let what a step on a CPU frees stay with the process, for the next step.

    By itself glibc gives it back to the system after each backward pass, and in the next forward
    pass the system fills every page with zeros again: up to a seventh of a step's time. Where
    shapes change, tensors above 32 MiB come and go nevertheless: in the gaps that larger ones left
    they would take a seventh more memory.
    """
    if device.type == "cpu":
        set_heap(map_from=None if one_shape else 32 << 20, trim_from=None)


def gpu_memory(device: torch.device) -> tuple[float, float]:
    """The most that this process took so far, and what there is, in GiB; 0 without a GPU."""
    if device.type != "cuda":
        return 0.0, 0.0
    taken = torch.cuda.max_memory_reserved(device)  # known on the host
    return taken / 2**30, torch.cuda.get_device_properties(device).total_memory / 2**30


def parts_of_share(run: Run) -> int:
    """In how many parts each process's share of a batch goes through the network.

    As many in all of them, however small a share is: synchronised batch norms meet in each part.
    """
    smallest = run.plan.batch_size // run.processes.world_size
    return min(run.recipe.train.accumulate, smallest)


def try_largest(run: Run, gradients: Gradients, statistics: Statistics) -> None:
    """With random shapes, a forward and a backward pass at the largest, that leave no trace.

    Raises OutOfMemoryError, with advice: in the first seconds, not when that shape is drawn.
    """
    augment, config = run.recipe.augment, run.recipe.train
    if not augment.random_shape:
        return
    side = range(augment.shape_min, augment.shape_max + 1, augment.shape_step)[-1]
    share = -(-run.plan.batch_size // run.processes.world_size)
    pictures = -(-share // parts_of_share(run))
    objects = int(np.diff(run.index.offsets).max()) * (4 if augment.mosaic else 1 + augment.mixup)
    statistics.keep()
    try:
        rehearse(run.model, run.recipe, pictures=pictures, side=side, objects=objects).backward()
        state_tensors(run.optimizer, run.model)  # they take memory from the first step on
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory at the largest random shape, {side}x{side} with {pictures} pictures "
            f"at a time; try --set train.accumulate={2 * config.accumulate} (the same batch in "
            f"smaller parts), --set augment.shape_max={max(side - 96, augment.shape_min)}, or a "
            "smaller --batch-size"
        ) from error
    gradients.clear()
    statistics.restore()


def rehearse(
    model: YOLOv3, recipe: Recipe, *, pictures: int, side: int, objects: int
) -> torch.Tensor:
    """The loss of a grey batch with room for so many objects in each picture."""
    device = next(model.parameters()).device
    grid = model.grid((side, side))
    batch = _blank(pictures, side, objects).to(device)
    return batch_losses(model, batch, grid, recipe=recipe, global_batch=pictures).total


def _blank(pictures: int, side: int, objects: int) -> Batch:
    """Grey pictures without objects."""
    return Batch(
        images=torch.full((pictures, side, side, 3), 128, dtype=torch.uint8),
        boxes=torch.full((pictures, objects, 4), -1.0),
        labels=torch.full((pictures, objects), -1),
        weights=torch.zeros(pictures, objects),
        image_ids=torch.zeros(pictures, dtype=torch.int64),
        original_sizes=torch.full((pictures, 2), side),
        colour=torch.eye(3, 4).repeat(pictures, 1, 1),
        rectangle=torch.tensor([0.0, 0.0, side, side]).repeat(pictures, 1),
    )
