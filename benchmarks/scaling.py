"""What several processes cost: measured where this runs, modelled for up to 64 GPUs.

    python benchmarks/scaling.py

Measured here: the bytes of one exchange of gradients, which depend on the network alone; the time
of a training step in one and in two processes on this CPU, in turns; the time of an exchange of
those bytes over loopback. Modelled: t(N) = compute + 2 (N - 1) / N * bytes / bandwidth + latency,
the ring all-reduce of Patarasuk and Yuan 2009, nothing of it hidden behind the backward pass,
since ours begins when all gradients are there. docs/scaling.md tells what is assumed, and why.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.multiprocessing import get_context

from triscale.distributed import Processes, add_up, join_processes, synchronise_batch_norm
from triscale.gradients import Gradients
from triscale.model.yolo import ModelConfig, build_model
from triscale.recipe import load_recipe
from triscale.step import batch_losses
from triscale.types import Batch

BACKBONES = ("darknet53", "mobilenet1.0", "tiny")
CLASSES = 20
NOTES = 6  # four losses and two wishes travel with the gradients
NODE = 8  # GPUs


# Assumed of a cluster: what a ring reaches within a node, and what an exchange takes at least.
INSIDE = 300e9  # bytes per second
LATENCY = {"inside": 20e-6, "across": 50e-6}  # seconds
# Assumed of a GPU, not measured: 30 % of an H100's dense bf16 peak of 989 TFLOP/s, at 198 GFLOP for
# a picture of 416x416 (three times the 65.9 GFLOP of Darknet's README for a forward pass).
SPEED = 1501.0  # pictures per second with darknet53
NETWORKS = (25, 100, 400)  # Gbit/s between two nodes
COUNTS = (1, 2, 4, 8, 16, 32, 64)


def exchange_bytes(backbone: str) -> int:
    """What one exchange carries: 4 bytes for each parameter and note."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(ModelConfig(backbone=backbone), CLASSES, generator=generator)
    size = Gradients(model, notes=NOTES).bytes
    assert size == 4 * (sum(p.numel() for p in model.parameters()) + NOTES)
    return size


def exchange_seconds(size: int, count: int, *, network: float) -> float:
    """A ring all-reduce of `size` bytes over `count` GPUs; a node has `network` bytes/s."""
    if count == 1:
        return 0.0
    bandwidth = INSIDE if count <= NODE else min(INSIDE, network)
    latency = LATENCY["inside" if count <= NODE else "across"]
    return 2 * (count - 1) / count * size / bandwidth + latency


def synchronised_exchanges(backbone: str) -> int:
    """How many small exchanges SyncBN adds to a step: two in each pass through each of them."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(ModelConfig(backbone=backbone), CLASSES, generator=generator)
    return 4 * sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def work(rank: int, count: int, port: int, repeats: int, results: Any) -> None:
    """Time steps of a process's share of 8 pictures, and exchanges; the main one reports."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    recipe = load_recipe("small", overrides=["train.device=cpu"])
    with join_processes(torch.device("cpu")) as processes:
        generator = torch.Generator().manual_seed(0)
        model = build_model(recipe.model, CLASSES, generator=generator)
        if count > 1:
            synchronise_batch_norm(model)
        gradients = Gradients(model, notes=NOTES)
        pictures, side = 8 // count, 160
        grid = model.grid((side, side))
        batch = _noise(pictures, side)

        def compute() -> None:
            gradients.clear()
            batch_losses(model, batch, grid, recipe=recipe, global_batch=8).total.backward()

        found = {
            "compute": _median(compute, processes, repeats),
            "exchange": _median(lambda: gradients.exchange(processes), processes, repeats),
        }
        if processes.is_main:
            results.put(found)


def _median(run: Any, processes: Processes, repeats: int) -> float:
    """Seconds; the processes begin together each time."""
    times: list[float] = []
    for _ in range(repeats + 2):
        add_up(torch.zeros(1), processes)
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def _noise(pictures: int, side: int) -> Batch:
    """A batch of random pictures with three objects each."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(pictures, 3, 2, generator=generator) * side / 2
    return Batch(
        images=torch.randint(
            0, 256, (pictures, side, side, 3), dtype=torch.uint8, generator=generator
        ),
        boxes=torch.cat([corner, corner + side / 3], 2),
        labels=torch.zeros(pictures, 3, dtype=torch.int64),
        weights=torch.ones(pictures, 3),
        image_ids=torch.arange(pictures),
        original_sizes=torch.full((pictures, 2), side),
        colour=torch.eye(3, 4).repeat(pictures, 1, 1),
        rectangle=torch.tensor([0.0, 0.0, side, side]).repeat(pictures, 1),
    )


def measure(count: int, repeats: int) -> dict[str, float]:
    """Times of `count` processes, started for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("spawn")
    results = context.SimpleQueue()
    group = [
        context.Process(target=work, args=(rank, count, port, repeats, results))
        for rank in range(count)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join()
    return results.get()


def main() -> None:
    """Print all tables of docs/scaling.md."""
    parser = argparse.ArgumentParser(description="What several processes cost.")
    parser.add_argument("--repeats", type=int, default=15, help="timed repetitions")
    parser.add_argument("--rounds", type=int, default=3, help="turns of one and two processes")
    arguments = parser.parse_args()

    sizes = {name: exchange_bytes(name) for name in BACKBONES}
    print("| network | parameters | bytes of an exchange |\n|---|---:|---:|")
    for name, size in sizes.items():
        print(f"| {name} | {size // 4 - NOTES:,} | {size:,} |")

    print("\n| processes | compute, ms | exchange, ms |\n|---:|---:|---:|")
    for _ in range(arguments.rounds):
        for count in (1, 2):
            found = measure(count, arguments.repeats)
            print(f"| {count} | {1e3 * found['compute']:.0f} | {1e3 * found['exchange']:.1f} |")

    size, extra = sizes["darknet53"], synchronised_exchanges("darknet53")
    networks = [f"{gbit} Gbit/s" for gbit in NETWORKS]
    for title, each in (("64 pictures in all", False), ("64 pictures on each GPU", True)):
        print(f"\ndarknet53, {title}:\n")
        print(f"| GPUs | {' | '.join(networks)} | 400 Gbit/s, SyncBN |")
        print(f"|---:|{'---:|' * (len(networks) + 1)}")
        for count in COUNTS:
            pictures = 64 * count if each else 64
            step = pictures / count / SPEED
            times = [
                step + exchange_seconds(size, count, network=gbit / 8 * 1e9) for gbit in NETWORKS
            ]
            times.append(times[-1] + extra * exchange_seconds(0, count, network=1))
            cells = [f"{pictures / t:,.0f} img/s ({step / t:.0%})" for t in times]
            print(f"| {count} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
