"""How well does a recipe detect, beside a rival on the same pictures and the same budget?

Both train in processes of their own with `--threads`, on the same pictures with the same boxes, at
the recipe's size and batch, once for each seed. Ours goes through the command line. Neither
validates while it trains, so that nothing is chosen by the pictures that decide; both are measured
by the same functions, in pixels of the picture, at most 100 detections with a score above 0.01 in
each. A finished run is a line of `--results`: called again, the script goes on with what is left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import Peer, Report, peers

from triscale.data.index import Index
from triscale.data.open import open_dataset
from triscale.data.plan import subset
from triscale.detections import Detections
from triscale.errors import UserError
from triscale.evaluation import EvalConfig, score
from triscale.recipe import Recipe, load_recipe
from triscale.recipes import recipe_text

OURS, RIVAL = "triscale", "ultralytics"
FIGURES = (("VOC07 mAP", "VOC07"), ("COCO AP", "AP"), ("COCO AP50", "AP50"))

Record = dict[str, Any]  # of one finished run: system, seed, settings, result


class Task(NamedTuple):
    """What is trained on what, and how long."""

    data: str
    train: str  # split; empty: found by looking
    val: str
    recipe: str
    overrides: tuple[str, ...]  # section.key=value
    epochs: int  # 0: as the recipe says
    minutes: float  # 0: so many epochs
    device: str
    threads: int
    workers: int

    def settings(self) -> Recipe:
        """The recipe as it will be used."""
        splits = [f"data.train={json.dumps(self.train)}", f"data.val={json.dumps(self.val)}"]
        epochs = [f"train.epochs={self.epochs}"] if self.epochs else []
        return load_recipe(self.recipe, overrides=[*splits, *self.overrides, *epochs])


def main() -> None:
    """Print the table."""
    parser = task_parser(__doc__)
    parser.add_argument("--recipe", default="small", help="ours: a name or a file")
    add = parser.add_argument
    add("--set", action="append", default=[], dest="overrides", metavar="section.key=value")
    add("--systems", nargs="+", choices=[OURS, RIVAL], default=[OURS, RIVAL])
    add("--network", default="yolov3-tiny.yaml", help="the rival's")
    add("--results", type=Path, default=Path("runs/accuracy.jsonl"), help="finished runs")
    add("--json", action="store_true", help="one JSON object instead of the table")
    words = parser.parse_args()
    task = task_of(words, words.recipe, tuple(words.overrides))
    found: dict[str, list[Record]] = {}
    names = [RIVAL] if RIVAL in words.systems else []
    with peers(names, threads=task.threads) as running:
        contenders: dict[str, tuple[dict[str, Any], Callable[[int], dict[str, Any]]]] = {}
        if OURS in words.systems:
            contenders[OURS] = our_settings(task), partial(ours, task)
        for peer in running.values():
            settings = rival_settings(task, words.network)
            contenders[RIVAL] = settings, partial(rival, peer, task, settings)
        for system, (settings, run) in contenders.items():
            for seed in words.seeds:
                try:
                    record = finished(words.results, system, seed, settings=settings, run=run)
                except (RuntimeError, UserError) as error:
                    sys.exit(f"{system}, seed {seed}: {error}")
                print(f"{system}, seed {seed}: {line(record)}", file=sys.stderr)
                found.setdefault(system, []).append(record)
        versions = {k: v for peer in running.values() for k, v in peer.versions.items()}
    report(task, found, versions).show(as_json=words.json)


def task_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the words for what is trained, and how long."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="the data set, as `triscale train` takes it")
    add("--train", default="", metavar="SPLIT", help="default: found by looking")
    add("--val", default="", metavar="SPLIT", help="what is measured on")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--epochs", type=int, default=0, help="default: the recipe's")
    budget.add_argument("--minutes", type=float, default=0.0, help="of training, validation apart")
    add("--device", default="cpu", help="of both, as cpu or cuda")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process")
    add("--workers", type=int, default=0, help="data loading processes of each")
    return parser


def task_of(words: argparse.Namespace, recipe: str, overrides: tuple[str, ...]) -> Task:
    """What the words say; a mistake in them ends the program before any hour is spent."""
    limits = (words.epochs, words.minutes, words.device, words.threads, words.workers)
    task = Task(words.data, words.train, words.val, recipe, overrides, *limits)
    try:
        task.settings()
    except UserError as error:
        sys.exit(str(error))
    return task


def our_settings(task: Task) -> dict[str, Any]:
    """What decides our result, the seed apart."""
    path = Path(task.recipe)
    text = path.read_bytes() if path.is_file() else recipe_text(task.recipe).encode()
    return {**task._asdict(), "recipe_sha256": hashlib.sha256(text).hexdigest()}


def rival_settings(task: Task, network: str) -> dict[str, Any]:
    """What decides the rival's result, the seed apart: the recipe's changes leave it alone."""
    names = ("data", "train", "val", "minutes", "device", "threads", "workers")
    recipe = task.settings()
    return {
        **{name: getattr(task, name) for name in names},
        "network": network,
        "size": recipe.train.size,
        "batch": recipe.train.batch_size,
        "epochs": recipe.train.epochs,
        "num_samples": recipe.data.num_samples,
    }


def finished(
    path: Path,
    system: str,
    seed: int,
    *,
    settings: dict[str, Any],
    run: Callable[[int], dict[str, Any]],
) -> Record:
    """The run with this seed as a line of the file has it, or else run and written there."""
    wanted = json.loads(json.dumps({"system": system, "seed": seed, "settings": settings}))
    there = path.read_text() if path.is_file() else ""
    for text in there.splitlines():
        with suppress(ValueError):  # what a killed process left behind
            record: Record = json.loads(text)
            if {name: record.get(name) for name in wanted} == wanted:
                return record
    record = {**wanted, "result": run(seed)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n" * (there[-1:] not in ("", "\n")) + json.dumps(record) + "\n")
    return record


def line(record: Record) -> str:
    """A result for people."""
    result = record["result"]
    shown = [f"{name} {100 * (result[key] or 0):.1f}" for name, key in FIGURES]
    return ", ".join([*shown, f"{result['seconds']:.0f} s"])


def ours(task: Task, seed: int) -> dict[str, Any]:
    """Train and measure as a user would: one command to train, one for each metric."""
    settings = task.settings()
    with tempfile.TemporaryDirectory(prefix="triscale-accuracy-") as folder:
        run = Path(folder) / "run"
        overrides = (
            *(f"data.train={json.dumps(task.train)}", f"data.val={json.dumps(task.val)}"),
            *task.overrides,
            *("train.val_interval=0", "train.save_interval=0"),
        )
        budget = ["--minutes", str(task.minutes)] if task.minutes else []
        budget += ["--epochs", str(task.epochs)] if task.epochs else []
        start = time.perf_counter()
        triscale(
            *("train", task.data, "--recipe", task.recipe, "--out", str(run), "--seed", str(seed)),
            *("--device", task.device, "--workers", str(task.workers), *budget),
            *(word for text in overrides for word in ("--set", text)),
            threads=task.threads,
        )
        wall = time.perf_counter() - start
        (weights,) = run.glob("epoch_*.safetensors")  # the last one's
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        reading = {name: getattr(settings.data, name) for name in ("skip_bad", "outside")}
        given = [f"data.{name}={json.dumps(value)}" for name, value in reading.items()]
        given.append("evaluate.network_resolution=false")
        voc, coco = (
            json.loads(
                triscale(
                    *("eval", str(weights), task.data, "--metric", metric, "--json"),
                    *("--device", task.device),
                    *(["--split", task.val] if task.val else []),
                    *(word for text in given for word in ("--set", text)),
                    threads=task.threads,
                )
            )
            for metric in ("voc07", "coco")
        )
    return {**_result(voc, coco), "seconds": wall, "wall_seconds": wall, "steps": log[-1]["step"]}


def triscale(*words: str, threads: int) -> str:
    """What the command prints; RuntimeError with its last word if it fails."""
    ended = subprocess.run(
        [sys.executable, "-m", "triscale", *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
        raise RuntimeError(said[-1])
    return ended.stdout


def rival(peer: Peer, task: Task, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The other program's answer, measured as ours."""
    # The reference's boxes, a pixel short, are for our own recipes.
    config = replace(task.settings().data, inclusive_boxes=False)
    data = open_dataset(Path(task.data), config)
    assert data.train
    assert data.val
    with tempfile.TemporaryDirectory(prefix="triscale-accuracy-") as folder:
        chosen = data.train.select(subset(len(data.train), config.num_samples, seed))
        write_yolo({"train": chosen, "val": data.val}, Path(folder))
        names = ("size", "batch", "epochs", "minutes", "device", "workers", "network")
        same = {name: settings[name] for name in names}
        answer = peer.ask("train", root=folder, split="train", val="val", seed=seed, **same)
    found: list[Detections] = []
    for rows in answer.pop("detections"):
        table = np.array(rows, np.float32).reshape(-1, 6)
        found.append(Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64)))
    voc, coco = (
        score(found, data.val, size=same["size"], metric=metric, config=EvalConfig()).to_json()
        for metric in ("voc07", "coco")
    )
    return {**_result(voc, coco), **answer}


def write_yolo(splits: dict[str, Index], target: Path) -> None:
    """The pictures as links and the boxes, in YOLO's layout; names sort in the index's order."""
    for split, index in splits.items():
        for name in ("images", "labels"):
            (target / name / split).mkdir(parents=True)
        for i, path in enumerate(index.paths):
            height, width = index.sizes[i].tolist()
            x1, y1, x2, y2 = (index.boxes[index.objects(i)] / (width, height, width, height)).T
            labels = index.labels[index.objects(i)]
            rows = np.stack([labels, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1).tolist()
            lines = [" ".join(f"{value:.8g}" for value in row) for row in rows]
            (target / "labels" / split / f"{i:07d}.txt").write_text("\n".join(lines))
            picture = target / "images" / split / f"{i:07d}{Path(path).suffix}"
            picture.symlink_to(Path(path).resolve())
    names = next(iter(splits.values())).classes
    (target / "data.yaml").write_text(json.dumps({"names": names}))  # JSON is YAML


def report(task: Task, found: dict[str, list[Record]], versions: dict[str, str]) -> Report:
    """The figures of each system side by side."""
    results = {system: [r["result"] for r in records] for system, records in found.items()}
    rows: list[tuple[str | float, ...]] = []

    def row(name: str, get: Callable[[dict[str, Any]], float | None], *, scale: float) -> None:
        values = [[get(result) for result in each] for each in results.values()]
        rows.append((name, *(mean_and_spread(each, scale=scale) for each in values)))

    for name, key in FIGURES:
        row(name, lambda result, key=key: result[key], scale=100)
    for name in next(iter(results.values()))[0]["per_class"] if results else ():
        row(f"- {name}", lambda result, name=name: result["per_class"][name], scale=100)
    row("training, s", lambda result: result["seconds"], scale=1)
    row("steps", lambda result: result["steps"], scale=1)
    settings = task.settings()
    seeds = [str(r["seed"]) for r in next(iter(found.values()), [])]
    budget = f"{task.minutes:g} minutes" if task.minutes else f"{settings.train.epochs} epochs"
    notes = (
        f"{settings.train.size} px, batches of {settings.train.batch_size}, {budget}, "
        f"{task.threads} threads. Seeds {', '.join(seeds)}: mean ± sample standard deviation. "
        "Classes: VOC07. Ours: seconds of the whole command; the rival's: of its epochs alone.",
    )
    title = f"Accuracy of `{Path(task.recipe).stem}` after training"
    return Report(title, ("what", *results), rows, notes, versions)


def mean_and_spread(values: Sequence[float | None], *, scale: float = 100, sign: str = "") -> str:
    """`61.2 ± 0.8`: mean and sample standard deviation, of those that are numbers."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return "-"
    mean = format(statistics.mean(known), f"{sign},.{1 if scale == 100 else 0}f")
    return f"{mean} ± {statistics.stdev(known):.1f}" if len(known) > 1 else mean


def _result(voc: dict[str, Any], coco: dict[str, Any]) -> dict[str, Any]:
    named = {"VOC07": voc["mAP"], "AP": coco["AP"], "AP50": coco["AP50"]}
    return {**named, "per_class": voc["per_class"], "images": voc["images"]}


if __name__ == "__main__":
    main()
