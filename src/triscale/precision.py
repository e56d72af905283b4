"""Which precision a run that asks for "auto" computes in: measured, once, when it begins.

bfloat16 halves the memory of the activations. Whether it saves time depends on the processor: with
AVX512-BF16, AMX or tensor cores convolutions are two times as fast and more, elsewhere PyTorch
emulates it and they are slower. No list of processors is asked, the network itself is timed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import torch

from triscale.distributed import Processes, share_value
from triscale.gradients import Statistics
from triscale.model.folded import WORTH, speed_up
from triscale.model.yolo import YOLOv3
from triscale.recipe import Recipe
from triscale.step import rehearse


def settle_precision(
    recipe: Recipe, model: YOLOv3, *, device: torch.device, processes: Processes
) -> tuple[Recipe, str]:
    """The recipe with `train.precision` as it is used, and a line for the user, empty if as given.

    Takes a second or two. All processes come here together and leave with the main one's choice.
    The model is left as it was, without gradients.
    """
    if recipe.train.precision != "auto":
        return recipe, ""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        chosen, why = "fp32", "this GPU has no bf16"
    else:
        gain = bf16_gain(recipe, model, device=device)
        chosen, why = (
            ("bf16" if gain >= WORTH else "fp32"),
            f"bf16 is {gain:.2f}x as fast as fp32 here; it is taken from {WORTH:g}x on",
        )
    chosen, why = share_value([chosen, why], processes, device=device)
    settled = replace(recipe, train=replace(recipe.train, precision=chosen))
    return settled, f"train.precision auto: {chosen} ({why})"


def bf16_gain(recipe: Recipe, model: YOLOv3, *, device: torch.device) -> float:
    """By how many times forward and backward passes are faster in bf16 than in fp32."""
    # Small on a CPU, to take a second; on a GPU large enough that its kernels count, not their
    # launches. Speed per pixel hardly depends on the size otherwise.
    most = -(-recipe.train.batch_size // recipe.train.accumulate)
    pictures, side = (2, 160) if device.type == "cpu" else (min(8, most), recipe.train.size)
    params = [param for param in model.parameters() if param.requires_grad]
    statistics = Statistics(model)
    training = model.training
    model.train()

    def passes(precision: Literal["fp32", "bf16"]) -> None:
        settled = replace(recipe, train=replace(recipe.train, precision=precision))
        loss = rehearse(model, settled, pictures=pictures, side=side, objects=1)
        torch.autograd.grad(loss, params)

    full, half = partial(passes, "fp32"), partial(passes, "bf16")
    gain = speed_up(full, half, device=device, rounds=2)
    statistics.restore()
    model.train(training)
    return gain
