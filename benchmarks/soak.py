"""Soak the data path: does memory stay flat over thousands of steps at random shapes?

Synthetic pictures are read, mixed, cut, resized, collated and turned into the network's input as in
training; there is no network. Every so often the memory of the main process and of all workers is
written down as VmRSS of /proc/<pid>/status. (Pss would count shared pages once, but it moves when
any other process that maps the same libraries starts or ends.) A line is fitted through it after
the warm-up, and one through the second half: a leak has the same slope in both, while pages that
malloc keeps for the largest picture so far stop to come. The reference's loader grows to 6 GB with
2 workers.

    python benchmarks/soak.py --steps 20000

Linux only. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from triscale.data.augment import AugmentConfig
from triscale.data.index import Index, PackedStrings
from triscale.data.loader import make_loader
from triscale.data.plan import Plan, PlanSampler
from triscale.normalise import network_input
from triscale.pixels import InputConfig


def main() -> int:
    """Run as the command line says; 0 once the figures are printed."""
    args = parse()
    torch.set_num_threads(1)
    config = AugmentConfig(mixup=True, mixup_off_epochs=0, shape_interval=args.shape_interval)
    with tempfile.TemporaryDirectory() as folder:
        index = write_index(Path(folder), args.pictures, seed=args.seed)
        epochs = -(-args.steps * args.batch // args.pictures)
        plan = Plan(args.pictures, args.batch, epochs, args.seed, 416, config)
        batches = make_loader(
            index, PlanSampler(plan, start=0, stop=args.steps), config=config, workers=args.workers
        )
        rows: list[tuple[int, int, int]] = []  # step, KB of the main process, of the workers
        began = time.perf_counter()
        for step, batch in enumerate(batches, 1):
            network_input(batch, InputConfig())
            if step % args.every == 0:
                pids = [child.pid for child in multiprocessing.active_children()]
                rows.append((step, memory(os.getpid()), sum(memory(pid) for pid in pids if pid)))
        seconds = time.perf_counter() - began
    table = np.array(rows, np.float64).reshape(-1, 3)
    table = table[table[:, 0] > args.warmup]
    result: dict[str, object] = {
        "steps": args.steps,
        "workers": args.workers,
        "batch": args.batch,
        "seconds": round(seconds, 1),
        "steps_per_second": round(args.steps / seconds, 2),
        "samples_per_second": round(args.steps * args.batch / seconds, 1),
    }
    print(f"{'':16} {'slope, KB/1000 steps':>24} {'first':>9} {'median':>9} {'last':>9} {'max':>9}")
    half = len(table) // 2
    for name, part, column in (
        *(("main", table, 1), ("main, late", table[half:], 1)),
        *(("workers", table, 2), ("workers, late", table[half:], 2)),
    ):
        result[f"{name} KB"] = found = summary(part[:, 0], part[:, column])
        sizes = " ".join(f"{found[key]:7.0f}KB" for key in ("first", "median", "last", "max"))
        print(f"{name:16} {found['slope']:14.1f} +- {found['error']:6.1f} {sizes}")
    print(json.dumps(result))
    return 0


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value, text in (
        ("steps", 20_000, "batches to load"),
        ("batch", 4, "pictures in a batch"),
        ("workers", 2, "data loading processes"),
        ("pictures", 200, "pictures that are drawn"),
        ("shape-interval", 10, "steps between two draws of the shape, 320 to 608"),
        ("every", 100, "steps between two looks at memory"),
        ("warmup", 1000, "steps that the line leaves out"),
        ("seed", 0, "of pictures and plan"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} ({value})")
    args = parser.parse_args()
    if (args.steps - args.warmup) // args.every < 6:
        parser.error("--steps: too few for a line; at least 6 looks must follow --warmup")
    return args


def write_index(folder: Path, pictures: int, *, seed: int) -> Index:
    """JPEGs with sides of 300 to 700 pixels, of soft colours, with 0 to 8 boxes each."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(300, 701, (pictures, 2)).astype(np.int32)
    paths = [folder / f"{i}.jpg" for i in range(pictures)]
    for path, (height, width) in zip(paths, sizes.tolist(), strict=True):
        soft = cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), (width, height))
        grain = rng.integers(0, 12, soft.shape, np.uint8)
        cv2.imwrite(str(path), cv2.add(soft, grain))
    counts = rng.integers(0, 9, pictures)
    owners = np.repeat(np.arange(pictures), counts)
    sides = sizes[owners][:, ::-1]  # (m, 2) width, height
    corners = np.sort(rng.random((len(owners), 2, 2)), axis=1)  # first the smaller
    boxes = (corners * (sides[:, None] - 2) + [[[0, 0], [2, 2]]]).reshape(-1, 4)
    return Index(
        name="soak",
        classes=tuple("abcdefghijklmnopqrst"),
        paths=PackedStrings(map(str, paths)),
        ids=PackedStrings(path.stem for path in paths),
        sizes=sizes,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes.astype(np.float32),
        labels=rng.integers(0, 20, len(owners)).astype(np.int32),
        difficult=np.zeros(len(owners), np.bool_),
        crowd=np.zeros(len(owners), np.bool_),
        areas=np.zeros(len(owners), np.float32),
    )


def memory(pid: int) -> int:
    """Resident set size of a process in KB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def summary(steps: NDArray[np.float64], values: NDArray[np.float64]) -> dict[str, float]:
    """The line's slope and its standard error in KB per 1,000 steps, and what there was in KB."""
    x = (steps - steps.mean()) / 1000
    slope = float(x @ values / (x @ x))
    rest = values - values.mean() - slope * x
    error = float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))
    return {
        "slope": round(slope, 2),
        "error": round(error, 2),
        "first": float(values[0]),
        "median": float(np.median(values)),
        "last": float(values[-1]),
        "max": float(values.max()),
    }


if __name__ == "__main__":
    sys.exit(main())
