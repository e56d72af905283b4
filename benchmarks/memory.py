"""How much memory does a training step take, and how large may a batch be?

The peak of a step at 608 pixels (GluonCV's largest random shape) for two batch sizes, each program
in a process of its own, and the straight line through them: what a picture takes and what is there
without any. From the line follows the largest batch; 1 GB stays free for what isn't tensors. On a
CPU the peak is that of the process less what it had before the network was made; on a GPU what
PyTorch's allocator handed out. The bare loop is that of step.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from harness import Report, arguments
from step import PLAIN, called, one_process, stepper

MEMORIES = (8, 16, 24, 80)  # GB
COLUMNS = ("network", "program", "GB without pictures", "MB a picture", *map(str, MEMORIES))


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=1, peers=False)
    networks = ["darknet53", "mobilenet1.0", "mobilenet0.25"]
    parser.add_argument("--networks", nargs="+", default=networks)
    parser.add_argument("--batches", nargs=2, type=int, default=[1, 3])
    parser.add_argument("--size", type=int, default=608)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    few, many = words.batches
    rows: list[tuple[str | float, ...]] = []
    for network in words.networks:
        for program in ("ours fp32", "ours bf16", PLAIN):
            peaks: list[float] = []
            for batch in (few, many):
                with one_process(words.threads) as process:
                    case = (program, network, batch, words.size, words.device)
                    peaks.append(called(process, peak, *case))
            each = (peaks[1] - peaks[0]) / (many - few)
            fixed = peaks[0] - few * each
            largest = [max(0, int((gb * 1e9 - 1e9 - fixed) / each)) for gb in MEMORIES]
            rows.append((network, program, fixed / 1e9, each / 1e6, *largest))
    notes = (
        f"{words.size} pixels, batches of {few} and {many}, on {words.device}. The last columns "
        "are the largest batch for so many GB, computed from the line.",
    )
    Report("The memory of a training step", COLUMNS, rows, notes).show(as_json=words.json)


def peak(program: str, network: str, batch: int, size: int, device: str) -> float:
    """Bytes that two steps, the first ones of a process, take at most."""
    stepper(program, "mobilenet0.1", 2, 64, device)()  # kernels and libraries are loaded
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident("VmRSS")
    step = stepper(program, network, batch, size, device)
    for _ in range(2):
        step()
    return (resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()) - before


def resident(kind: str) -> float:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM); Linux only."""
    if sys.platform != "linux":
        raise SystemExit("the memory of a CPU's steps is read from /proc/self/status: use Linux")
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024


if __name__ == "__main__":
    main()
