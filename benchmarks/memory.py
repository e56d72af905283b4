"""How much memory does a training step take, and how large may a batch be?

The peak of a step at 608 pixels (GluonCV's largest random shape) for several batch sizes, each in a
process of its own, and the straight line through them: what a picture takes and what is there
without any. From the line follows the largest batch; 1 GB stays free for what isn't tensors.
Counted is what PyTorch's allocator handed out at most; beside it for the largest batch what the
process had taken: with the libraries' own buffers, and what the allocator keeps for later. The
bare loop is that of step.py.
"""

from __future__ import annotations

import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Report, arguments
from step import PLAIN, one_process, stepper
from torch.profiler import ProfilerActivity, profile

MEMORIES = (8, 16, 24, 80)  # GB
COLUMNS = ("network", "program", "GB without pictures", "MB a picture")


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=1, peers=False)
    networks = ["darknet53", "mobilenet1.0", "mobilenet0.25"]
    parser.add_argument("--networks", nargs="+", default=networks)
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--size", type=int, default=608)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    if len(batches := sorted(set(words.batches))) < 2:
        sys.exit("--batches: expected two or more")
    rows: list[tuple[str | float, ...]] = []
    for network in words.networks:
        for program in ("ours fp32", "ours bf16", PLAIN):
            peaks: list[float] = []
            taken = 0.0
            for batch in batches:
                with one_process(words.threads) as process:
                    case = (program, network, batch, words.size, words.device)
                    found, taken = process.submit(peak, *case).result()
                peaks.append(found)
            each, fixed = np.polyfit(batches, peaks, 1)
            largest = [max(0, int((gb * 1e9 - 1e9 - fixed) / each)) for gb in MEMORIES]
            measured = [round(found / 1e9, 2) for found in (*peaks, taken)]
            rows.append((network, program, fixed / 1e9, each / 1e6, *measured, *largest))
    most = batches[-1]
    notes = (
        f"{words.size} pixels, on {words.device}; batches of {', '.join(map(str, batches))}, GB of "
        f"tensors at most; taken: GB of the process at most, with {most}. The last columns are the "
        "largest batch for so many GB, computed from the line.",
    )
    names = (*(f"batch {batch}" for batch in batches), f"taken, {most}", *map(str, MEMORIES))
    report = Report("The memory of a training step", (*COLUMNS, *names), rows, notes)
    report.show(as_json=words.json)


def peak(program: str, network: str, batch: int, size: int, device: str) -> tuple[float, float]:
    """Bytes at most during two steps, the first ones of a process: of tensors, and all taken."""
    stepper(program, "mobilenet0.1", 2, 64, device)()  # kernels and libraries are loaded
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        steps(program, network, batch, size, device)
        after = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return after[0] - before[0], after[1] - before[1]
    free = resident("VmRSS")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        steps(program, network, batch, size, device)
    taken = resident("VmHWM") - free
    kineto: Any = profiler.profiler
    events = [each for each in kineto.kineto_results.events() if each.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events)), taken


def steps(program: str, network: str, batch: int, size: int, device: str) -> None:
    """Two steps of a network made for them."""
    step = stepper(program, network, batch, size, device)
    for _ in range(2):
        step()


def resident(kind: str) -> float:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM); Linux only."""
    if sys.platform != "linux":
        raise SystemExit("the memory of a CPU's steps is read from /proc/self/status: use Linux")
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024


if __name__ == "__main__":
    main()
