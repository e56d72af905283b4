"""What does a GPU do with it: training steps, inference, and do the data keep up?

Training steps in bf16: as a plain network lies in memory, channels-last (what triscale does), with
cuDNN's search for the fastest convolution, and compiled (`train.compile`); beside them a plain step
in fp32 (see gpu_steps.py). At one size, and over the sizes of random shapes, one step each.
Inference goes from bytes on the host to detections there. Then the loader alone, and the loop's
step fed by it: `waited` is the share of the time without data. Memory is what a step needs above
weights, gradients and velocities. MFU is the model's floating-point operations (a multiplication
and an addition are two; a backward pass counts as two forward passes) over the peak of the device's
dense bf16, also for fp32.

    python benchmarks/gpu.py --data VOCdevkit --train VOCdevkit --set train.epochs=20

With `--train` a run of `triscale train` follows, in a process of its own, with its curve. Compiling
for every shape takes minutes; `--only` chooses parts of the whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from gpu_steps import (
    BEST,
    PLAIN,
    Bench,
    Grids,
    Row,
    Step,
    count_syncs,
    mfu,
    network,
    our_step,
    train_rows,
    wait_for,
)
from guard_cost import noise
from harness import Report, arguments, in_turns, ratio
from limit import forward_flops

from triscale.data.loader import make_loader
from triscale.data.open import open_dataset
from triscale.data.options import DataConfig
from triscale.data.plan import PlanSampler
from triscale.data.prefetch import on_device
from triscale.decode import DecodeConfig, detect, detections
from triscale.demo.scenes import write_scenes
from triscale.distributed import Processes
from triscale.model.compiled import compiling
from triscale.model.folded import fold
from triscale.normalise import network_input
from triscale.recipe import load_recipe
from triscale.training import make_plan
from triscale.types import Batch

PARTS = ("size", "shapes", "inference", "data")
COLUMNS = ("what", "how", "batch", "img/s", "MFU, %", "of plain", "memory, GB", "waited, %")
# Dense bf16, TFLOP/s, by a part of the name that CUDA gives the device; the first that fits. From
# NVIDIA's data sheets of A100 (2021), H100 (SXM, PCIe, NVL) and H200 (SXM, NVL), where figures for
# sparse matrices are twice these.
PEAKS = {
    "H200 NVL": 835.5,
    "H200": 989.5,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.5,
    "A100": 312.0,
}


def inference_rows(bench: Bench, sizes: tuple[int, ...], side: int) -> list[Row]:
    """From bytes on the host to detections on the host, per batch size and network."""
    plain = network(bench, channels_last=False).eval()
    last = network(bench, channels_last=True).eval()
    half = fold(last, dtype=torch.bfloat16)
    networks: dict[str, Any] = {
        PLAIN: plain,
        "fp32, folded": fold(last),
        "bf16, folded": half,
        "bf16, folded, compiled": torch.compile(half, dynamic=False, backend=bench.backend),
    }
    grids, rows = Grids(bench), list[Row]()
    for size in sizes:
        batch = noise(size, side)
        if bench.device.type == "cuda":
            batch = Batch(*(field.pin_memory() for field in batch))
        repeats = max(bench.steps * 8 // size, 1)

        def measure(called: Any, batch: Batch = batch, repeats: int = repeats) -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                for _ in range(repeats):
                    images = network_input(batch.to(bench.device), bench.recipe.input)
                    found = detect(called(images), grids.of(batch), DecodeConfig())
                    sizes = batch.original_sizes
                    detections(found, (side, side), original_sizes=sizes, fit="stretch")
            return repeats * len(batch.images) / (time.perf_counter() - start)

        contenders = {name: (lambda c=called: measure(c)) for name, called in networks.items()}
        found = in_turns(contenders, rounds=bench.rounds)
        for name, speeds in found.items():
            speed, share = statistics.median(speeds), ratio(speeds, found[PLAIN])
            work = mfu(bench, [side], speed, passes=1)
            rows.append((f"inference, {side}", name, size, speed, work, share, "-", "-"))
    return rows


def data_rows(bench: Bench, folder: Path, *, steps: int) -> list[Row]:
    """The loader alone, and the loop with it: pictures a second, and the share of waiting."""
    data = open_dataset(folder, DataConfig())
    assert data.train is not None, f"{folder}: no training split"
    config, index = bench.recipe.train, data.train
    draws = replace(bench.recipe, train=replace(config, epochs=10**6))  # as many as are wanted
    plan = make_plan(draws, index, Processes())
    warm_up = max(2 * config.workers, 2)  # what the workers read ahead

    def batches() -> Iterator[Batch]:
        sampler = PlanSampler(plan, start=0, stop=warm_up + steps)
        return make_loader(
            index,
            sampler,
            config=bench.recipe.augment,
            workers=config.workers,
            pin_memory=bench.device.type == "cuda",
        )

    def run(step: Step) -> tuple[float, float]:
        stream, waited = on_device(batches(), bench.device), 0.0
        for batch in islice(stream, warm_up):
            step(batch)
        wait_for(bench.device)
        start = begun = time.perf_counter()
        for batch in stream:
            waited += time.perf_counter() - begun
            step(batch)
            begun = time.perf_counter()
        wait_for(bench.device)
        seconds = time.perf_counter() - start
        return steps * config.batch_size / seconds, 100 * waited / seconds

    rows: list[Row] = []
    what = f"data, {config.workers} workers"
    size = config.batch_size
    alone, _ = run(lambda _: None)
    fed, waited = run(our_step(bench))
    rows.append((what, "the loader alone", size, alone, "-", "-", "-", "-"))
    rows.append((what, f"{BEST}, fed", size, fed, "-", "-", "-", waited))
    return rows


def train_run(bench: Bench, data: Path, overrides: list[str]) -> list[str]:
    """The curve of a run of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["triscale", "train", str(data), "--out", str(run)]
        words += [word for override in overrides for word in ("--set", override)]
        start, lines = time.monotonic(), list[str]()
        process = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        seen = 0
        while True:
            over = process.poll() is not None
            minutes = (time.monotonic() - start) / 60
            log = run / "log.jsonl"
            written = log.read_text().splitlines() if log.is_file() else []
            records = [json.loads(line) for line in written[seen:]]
            seen = len(written)
            for record in records:
                if record["kind"] == "train":
                    speed, waited = record["images_per_second"], record["data_seconds"]
                    loss = f"loss {record['loss']:.2f}, {speed:.0f} img/s, waited {waited:.1f} s"
                elif record["kind"] == "eval":
                    score = record["metrics"]["mAP"]
                    lines.append(f"{minutes:.1f} min: epoch {record['epoch']}, mAP {score}, {loss}")
            if over:
                break
            time.sleep(1)
    end = f"`{' '.join(words)}` ended with {process.returncode} after {minutes:.1f} min"
    return [end, *(f"- {line}" for line in lines)]


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, rounds=5, peers=False)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--network", default="darknet53")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--steps", type=int, default=20, help="in a round")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--data", type=Path, help="real pictures instead of drawn ones")
    parser.add_argument("--train", type=Path, help="a data set to train on with the command line")
    parser.add_argument("--set", action="append", default=[], help="of the recipe of that run")
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bf16")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    words = parser.parse_args()
    device = torch.device(words.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is there; --device cpu --smoke shows whether the script runs")
    if words.smoke:
        small = {"network": "tiny", "batch_size": 2, "size": 64, "workers": 1, "steps": 1}
        vars(words).update(small, rounds=1)
    measure(words, device)


def measure(words: argparse.Namespace, device: torch.device) -> None:
    """All questions in turn, as one table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    known = next((peak for part, peak in PEAKS.items() if part in name), 0.0)
    shapes = ("augment.shape_min=64", "augment.shape_max=96") if words.smoke else ()
    recipe = load_recipe(
        "small",
        overrides=[
            *(
                f"model.backbone={words.network}",
                "train.precision=bf16",
                f"train.size={words.size}",
            ),
            *(f"train.batch_size={words.batch_size}", f"train.workers={words.workers}"),
            *("augment.random_shape=true", *shapes),
        ],
    )
    peak = 1e12 * (words.peak_tflops or known)
    backend = "eager" if words.smoke else "inductor"
    bench = Bench(recipe, device, peak, backend, words.rounds, words.steps)
    augment = recipe.augment
    sides = [*range(augment.shape_min, augment.shape_max + 1, augment.shape_step)]
    rows, notes = list[Row](), list[str]()
    with compiling(2 * len(sides) + 4):
        for part, chosen in (("size", [words.size]), ("shapes", sides)):
            if part in words.only:
                found, said = train_rows(bench, words.batch_size, chosen)
                rows, notes = [*rows, *found], [*notes, *said]
        if "size" in words.only:
            notes.append(count_syncs(bench, words.batch_size, words.size))
        if "inference" in words.only:
            rows += inference_rows(bench, (1,) if words.smoke else (1, 64), words.size)
    if "data" in words.only:
        with tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder) / "VOC"
            if words.data is None:
                pictures = 4 if words.smoke else max(256, words.batch_size)
                write_scenes(drawn, num_train=pictures, num_test=1, size=(375, 500))
            rows += data_rows(bench, words.data or drawn, steps=2 if words.smoke else 60)
    if words.train:
        notes += train_run(bench, words.train, words.set)
    operations = 3 * forward_flops(recipe.model, words.size) / 1e9
    notes.insert(
        0,
        f"{words.network} at {words.size}: {operations:.1f} GFLOP for a training picture; peak "
        f"{bench.peak / 1e12:.0f} TFLOP/s (0: unknown).",
    )
    title = f"{words.network} on {name}"
    Report(title, COLUMNS, rows, tuple(notes)).show(as_json=words.json)


if __name__ == "__main__":
    main()
