"""Training steps side by side, for gpu.py: ours in its variants and a plain one.

A step of ours is what the loop of `triscale.training` does with a batch on the device: losses,
backward pass, guards, update, news. The plain one is the same network and loss as one would write
it: fp32, with TF32 where PyTorch uses it, contiguous, torch's SGD, no guards.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from guard_cost import noise
from harness import in_turns, ratio
from limit import forward_flops

from triscale.anchors import make_grid
from triscale.gradients import Gradients, Statistics
from triscale.guard import LAG, Echo
from triscale.log import LOSSES
from triscale.model.yolo import YOLOv3, build_model, skeleton
from triscale.optim import parameter_groups
from triscale.recipe import Recipe
from triscale.sgd import SGD
from triscale.step import batch_losses
from triscale.types import Batch

CLASSES = 20
PLAIN, BEST = "plain PyTorch: fp32 (TF32), contiguous", "bf16, channels-last"
COMPILED = f"{BEST}, compiled"

Step = Callable[[Batch], None]
Row = tuple[str | float, ...]


class Bench(NamedTuple):
    """What is measured on what."""

    recipe: Recipe
    device: torch.device
    peak: float  # FLOP/s; 0: unknown
    backend: str  # of torch.compile
    rounds: int
    steps: int  # in a round, at one size


def mfu(bench: Bench, sides: list[int], pictures_per_second: float, *, passes: int) -> str | float:
    """Per cent of the peak, at the mean cost of the sides."""
    flops = statistics.mean(forward_flops(bench.recipe.model, side) for side in sides)
    return 100 * passes * flops * pictures_per_second / bench.peak if bench.peak else "-"


def network(bench: Bench, *, channels_last: bool) -> YOLOv3:
    """A new network on the device."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(bench.recipe.model, CLASSES, generator=generator).to(bench.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]


def plain_step(bench: Bench) -> Step:
    """As one would write it without triscale's loop."""
    recipe = replace(bench.recipe, train=replace(bench.recipe.train, precision="fp32"))
    model, grids = network(bench, channels_last=False), Grids(bench)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        size = len(batch.images)
        losses = batch_losses(model, batch, grids.of(batch), recipe=recipe, global_batch=size)
        losses.total.backward()
        optimizer.step()

    return step


def our_step(bench: Bench, *, channels_last: bool = True, compiled: bool = False) -> Step:
    """What the loop of `triscale.training` does with a batch on the device."""
    model, grids = network(bench, channels_last=channels_last), Grids(bench)
    optimizer = SGD(parameter_groups(model, bench.recipe.optim), lr=1e-6, momentum=0.9)
    gradients, statistics = Gradients(model, notes=len(LOSSES) + 2), Statistics(model)
    echo = Echo(lag=0 if bench.device.type == "cpu" else LAG)
    called: Any = model
    if compiled:  # as triscale.model.compiled, with another backend in a rehearsal
        called = torch.compile(model, dynamic=False, fullgraph=True, backend=bench.backend)

    def step(batch: Batch) -> None:
        size = len(batch.images)
        gradients.clear()
        statistics.keep()
        losses = batch_losses(
            called, batch, grids.of(batch), recipe=bench.recipe, global_batch=size
        )
        losses.total.backward()
        gradients.notes[: len(LOSSES)] += torch.stack(losses).detach()
        ok = gradients.finite()
        gradients.clear_unless(ok)
        statistics.restore_unless(ok)
        optimizer.step(ok=ok)
        echo.send(0, gradients.notes, ok)
        list(echo.receive())

    return step


class Grids:
    """The grid of each input size, made once."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._model = skeleton(bench.recipe.model, CLASSES)
        self._made: dict[tuple[int, int], Any] = {}

    def of(self, batch: Batch) -> Any:
        """The grid for a batch."""
        size = batch.images.shape[1], batch.images.shape[2]
        if size not in self._made:
            self._made[size] = make_grid(
                self._model.anchors,
                size,
                scale_x_y=self._model.scale_x_y,
                device=self._bench.device,
            )
        return self._made[size]


def wait_for(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def searching(on: bool) -> AbstractContextManager[Any]:
    """cuDNN tries its algorithms for each new shape while the block runs."""
    cudnn: Any = torch.backends.cudnn
    return cudnn.flags(enabled=True, benchmark=True, allow_tf32=True) if on else nullcontext()


def train_rows(bench: Bench, batch_size: int, sides: list[int]) -> tuple[list[Row], list[str]]:
    """A row for each way to make a step at these sizes, and what compiling took."""
    batches = [noise(batch_size, side).to(bench.device) for side in sides]
    batches *= max(bench.steps // len(sides), 1)
    steps = {
        PLAIN: plain_step(bench),
        "bf16, contiguous": our_step(bench, channels_last=False),
        BEST: our_step(bench),
        f"{BEST}, cuDNN searching": our_step(bench),
        COMPILED: our_step(bench, compiled=True),
    }
    peaks, first = dict[str, float](), dict[str, float]()

    def measure(name: str) -> float:
        device, cuda = bench.device, bench.device.type == "cuda"
        if cuda:
            torch.cuda.empty_cache()  # what the others left behind
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        wait_for(device)
        start = time.perf_counter()
        with searching("searching" in name):
            for batch in batches:
                steps[name](batch)
        wait_for(device)
        seconds = time.perf_counter() - start
        first.setdefault(name, seconds)
        if cuda:
            peaks[name] = (torch.cuda.max_memory_allocated(device) - before) / 1e9
        return batch_size * len(batches) / seconds

    contenders = {name: (lambda name=name: measure(name)) for name in steps}
    found = in_turns(contenders, rounds=bench.rounds)
    shown = f"{sides[0]}" if len(sides) == 1 else f"{sides[0]} to {sides[-1]}"
    rows: list[Row] = []
    for name, speeds in found.items():
        speed = statistics.median(speeds)
        share = mfu(bench, sides, speed, passes=3)
        memory = peaks.get(name, "-")
        plain = ratio(speeds, found[PLAIN])
        rows.append((f"step, {shown}", name, batch_size, speed, share, plain, memory, "-"))
    eager, fast = (statistics.median(found[name]) for name in (BEST, COMPILED))
    spent = first[COMPILED] - batch_size * len(batches) / fast
    saved = batch_size / eager - batch_size / fast  # seconds a step
    after = f"paid back after {spent / saved:,.0f} steps" if saved > 0 else "never paid back"
    return rows, [f"Compiling for {shown} took {spent:.1f} s, {after}."]


def count_syncs(bench: Bench, batch_size: int, side: int) -> str:
    """How often a step makes the host wait for the device, as CUDA tells PyTorch."""
    if bench.device.type != "cuda":
        return "Waits of the host for the device are counted on GPUs only."
    step, batch = our_step(bench), noise(batch_size, side).to(bench.device)
    for _ in range(2 * LAG):
        step(batch)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            step(batch)
    torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    return f"{len(waits)} waits of the host for the device in 3 steps."
