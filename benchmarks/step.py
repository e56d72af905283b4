"""How fast is a training step, and where does its time go?

Ours, as `triscale train` takes it, in fp32 and bf16; the same network in a bare loop of plain
PyTorch (its own memory format, gradients, optimiser and heap), and with --peers GluonCV's step on
MXNet. Each runs in a process of its own, in turns, on one batch of noise with 20 classes; `limit`
is the time of the same arithmetic at the rate of PyTorch's best kernels here (limit.py).
The share of the convolutions is that of a profiled step of ours; --profile prints its table by
operator.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial

import torch
from guard_cost import noise
from harness import Report, arguments, in_turns, peers, ratio
from limit import forward_flops, seconds_at_best
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from triscale.assign import assign, ignored
from triscale.decode import decode_boxes
from triscale.gradients import Gradients, Statistics
from triscale.loss import yolo_loss
from triscale.model.yolo import ModelConfig, YOLOv3, build_model
from triscale.normalise import network_input
from triscale.optim import parameter_groups
from triscale.recipe import Recipe, load_recipe
from triscale.sgd import SGD
from triscale.step import batch_losses, keep_freed_memory
from triscale.types import Batch

PLAIN = "plain torch fp32"
COLUMNS = ("network", "batch", "program", "img/s", "ours fp32 / it", "ours bf16 / it", "conv %")


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=2)
    networks = ["darknet53", "mobilenet1.0", "mobilenet0.25"]
    parser.add_argument("--networks", nargs="+", default=networks)
    parser.add_argument("--batches", nargs="+", type=int, default=[4])
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="print the operators too")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    rows: list[tuple[str | float, ...]] = []
    tables: list[str] = []
    versions: dict[str, str] = {}
    for network in words.networks:
        for batch in words.batches:
            with ExitStack() as stack:
                programs: dict[str, Callable[[], float]] = {}
                processes: dict[str, ProcessPoolExecutor] = {}
                for name in ("ours fp32", "ours bf16", PLAIN):
                    processes[name] = stack.enter_context(one_process(words.threads))
                    case = (name, network, batch, words.size)
                    programs[name] = partial(called, processes[name], seconds, *case)
                asked = ["gluoncv"] if words.peers else []
                for name, peer in stack.enter_context(peers(asked, threads=words.threads)).items():
                    versions |= peer.versions
                    ask = partial(peer.ask, "step", network=network, batch=batch, size=words.size)
                    programs[name] = lambda ask=ask: ask(steps=1)["seconds"]
                flops = 3 * batch * forward_flops(ModelConfig(backbone=network), words.size)
                for precision in ("fp32", "bf16"):
                    programs[f"limit {precision}"] = partial(seconds_at_best, flops, precision)
                times = in_turns(programs, rounds=words.rounds)
                shares: dict[str, float] = {}
                for name in ("ours fp32", "ours bf16"):
                    case = (name, network, batch, words.size)
                    shares[name], table = processes[name].submit(profiled, *case).result()
                    tables.append(f"{name}, {network}, batch {batch}\n\n```\n{table}\n```")
            for name, own in times.items():
                # times, so the other way round
                gains = [round(ratio(own, times[ours]), 2) for ours in ("ours fp32", "ours bf16")]
                share = f"{shares[name]:.0f}" if name in shares else ""
                speed = batch / statistics.median(own)
                rows.append((network, batch, name, speed, *gains, share))
    notes = (f"Pictures of {words.size} pixels, {words.threads} threads.",)
    notes += tuple(tables) if words.profile else ()
    Report("A training step", COLUMNS, rows, notes, versions).show(as_json=words.json)


def one_process(threads: int) -> ProcessPoolExecutor:
    """A process that isn't forked from this one and stays."""
    return ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
    )


def called(process: ProcessPoolExecutor, function: Callable[..., float], *case: object) -> float:
    """The figure that a function returns in the process."""
    return process.submit(function, *case).result()


def seconds(program: str, network: str, batch: int, size: int) -> float:
    """The time of a step."""
    step = stepper(program, network, batch, size)
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def profiled(program: str, network: str, batch: int, size: int) -> tuple[float, str]:
    """The convolutions' share of a step's CPU time in percent, and the profiler's table.

    Of the fastest of three steps: what else runs on the machine lengthens some operators at random.
    """
    step = stepper(program, network, batch, size)
    seen: list[EventList] = []
    for _ in range(3):
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            step()
        seen.append(profiler.key_averages())
    totals = [sum(event.self_cpu_time_total for event in events) for events in seen]
    events = seen[totals.index(min(totals))]
    inside = sum(event.self_cpu_time_total for event in events if "conv" in event.key.lower())
    table = events.table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=40)
    return 100 * inside / min(totals), table


@lru_cache
def stepper(
    program: str, network: str, batch: int, size: int, device: str = "cpu"
) -> Callable[[], None]:
    """A step of one of our programs with all that it needs; the first call isn't typical."""
    precision = program.split()[-1]
    recipe = load_recipe(
        "gluoncv-voc", overrides=[f"model.backbone={network}", f"train.precision={precision}"]
    )
    model = build_model(recipe.model, 20, generator=torch.Generator().manual_seed(0))
    make = plain_step if program == PLAIN else our_step
    return make(model.to(device), recipe, noise(batch, size).to(torch.device(device)))


def our_step(model: YOLOv3, recipe: Recipe, batch: Batch) -> Callable[[], None]:
    """What the loop of `triscale.training` does."""
    count, side, *_ = batch.images.shape
    device = batch.images.device
    keep_freed_memory(device)
    model.to(memory_format=torch.channels_last)
    grid = model.grid((side, side))
    optimizer = SGD(parameter_groups(model, recipe.optim), lr=1e-5)
    gradients, kept = Gradients(model, notes=6), Statistics(model)

    def step() -> None:
        gradients.clear()
        kept.keep()
        losses = batch_losses(model, batch, grid, recipe=recipe, global_batch=count)
        losses.total.backward()
        ok = gradients.finite()
        gradients.clear_unless(ok)
        kept.restore_unless(ok)
        optimizer.step(ok=ok)

    return step


def plain_step(model: YOLOv3, recipe: Recipe, batch: Batch) -> Callable[[], None]:
    """The same network and loss in the shortest loop that PyTorch allows."""
    count, side, *_ = batch.images.shape
    grid = model.grid((side, side))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=5e-4)
    boxes, labels = batch.boxes, batch.labels

    def step() -> None:
        optimizer.zero_grad()
        predictions = model(network_input(batch, recipe.input).contiguous())
        targets = assign(boxes, labels, batch.weights, grid, size=(side, side))
        decoded = decode_boxes(predictions, grid)
        ignore = ignored(decoded, boxes, labels, threshold=recipe.loss.ignore_iou)
        losses = yolo_loss(predictions, targets, ignore, grid, recipe.loss, global_batch=count)
        losses.total.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
