"""`triscale bench inference`: how fast decoded pictures become detections, models by turns."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice, product
from statistics import median
from typing import TYPE_CHECKING, Any, get_args

from triscale import __version__
from triscale.commands.options import sides, table
from triscale.errors import UserError
from triscale.turns import in_turns, noise, ratio, steady

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from triscale.predict import Detector

HELP = "measure how fast models find objects on this machine"
ROUNDS = 3  # at least
MOST = 64  # pictures that are kept in memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("what", choices=["inference"], help="from decoded pictures to detections")
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="weights, run folders, exported files"
    )
    parser.add_argument(
        "--batch", default="1", metavar="N,..", help="pictures at once, such as 1,8"
    )
    parser.add_argument(
        "--size", metavar="N|HxW", help="of the network input (default: as the models say)"
    )
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="B,..",
        help="openvino, onnxruntime, torch; auto: the fastest that is there and runs the model",
    )
    parser.add_argument(
        "--precision", default="fp32", metavar="P,..", help="fp32, bf16, auto (default: fp32)"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="for weights")
    parser.add_argument("--threads", metavar="N", help="default: the cores that are there")
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="for each batch (default: 10)"
    )
    parser.add_argument(
        "--pictures", nargs="+", metavar="SOURCE", help="default: a drawn one of 640x480"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    batches = [_whole(word, "--batch") for word in arguments.batch.split(",")]
    if not 0 <= arguments.seconds <= 3600:
        raise UserError(f"--seconds: expected 0 to 3600, got {arguments.seconds:g}")
    from triscale.engines.machine import cores, num_threads, processor

    threads = _whole(arguments.threads, "--threads") if arguments.threads else num_threads()
    contenders = _contenders(arguments, threads)
    for model, detector in contenders:
        _require_batches(model, detector, batches)
    pictures = _pictures(arguments.pictures)
    shapes = sorted({f"{image.shape[1]}x{image.shape[0]}" for image in pictures})
    facts = {
        "processor": f"{processor()}, {cores()} cores",
        "threads": threads,
        **({"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}),
        "pictures": f"{len(pictures)} of {shapes[0]}" + (" and others" if shapes[1:] else ""),
        "triscale": __version__,
        "python": platform.python_version(),
    }
    if not arguments.json:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows: list[dict[str, Any]] = []
    for batch in batches:
        found = _measured(contenders, pictures, batch=batch, seconds=arguments.seconds)
        rows += found
        if not arguments.json:
            print(f"\nbatch {batch}, {found[0]['rounds']} rounds by turns")
            _show(found)
    if arguments.json:
        print(json.dumps({**facts, "rows": rows}))


def _contenders(arguments: argparse.Namespace, threads: int) -> list[tuple[str, Detector]]:
    """Each model with each backend in each precision."""
    from triscale.predict import Backend, Detector, Precision

    size = sides(arguments.size) if arguments.size else None
    wanted = product(
        arguments.models,
        _words(arguments.backend, Backend, "--backend"),
        _words(arguments.precision, Precision, "--precision"),
    )
    return [
        (
            model,
            Detector(
                model,
                device=arguments.device,
                precision=precision,
                backend=backend,
                size=size,
                threads=threads,
            ),
        )
        for model, backend, precision in wanted
    ]


def _words(text: str, kind: Any, flag: str) -> list[Any]:
    """The values of a Literal that are named."""
    words = text.split(",")
    for word in words:
        if word not in get_args(kind):
            raise UserError(f"{flag}: expected some of {', '.join(get_args(kind))}, got '{word}'")
    return words


def _whole(text: str, flag: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,2}", text):
        raise UserError(f"{flag}: expected 1 to 999, got '{text}'")
    return int(text)


def _require_batches(model: str, detector: Detector, batches: Sequence[int]) -> None:
    """UserError for a file of a fixed batch: it computes that many pictures whatever goes in."""
    from triscale.engines.onnx import OnnxEngine
    from triscale.engines.openvino import OpenVinoEngine

    engine = detector.engine
    fixed = engine.header.batch if isinstance(engine, OnnxEngine | OpenVinoEngine) else None
    for batch in batches:
        if fixed not in (None, batch):
            raise UserError(f"{model}: takes {fixed} pictures at once; --batch {batch} doesn't fit")


def _pictures(sources: Sequence[str] | None) -> list[NDArray[np.uint8]]:
    """The first MOST of the user's, or a drawn one."""
    if not sources:
        return noise(1)
    from triscale.sources import find_sources, read_shots

    def failed(error: UserError) -> None:
        raise error

    shots = read_shots(find_sources(sources), every=1, failed=failed, warn=lambda _: None)
    return [shot.image for shot in islice(shots, MOST)]


def _measured(
    contenders: Sequence[tuple[str, Detector]],
    pictures: Sequence[NDArray[np.uint8]],
    *,
    batch: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """A row for each contender."""

    def measure(detector: Detector) -> Callable[[], float]:
        following = cycle(pictures)  # the same ones for each
        return partial(steady, lambda: detector.batch(list(islice(following, batch))))

    calls = {str(k): measure(detector) for k, (_, detector) in enumerate(contenders)}
    times = in_turns(calls, rounds=ROUNDS, seconds=seconds)
    return [
        {
            "model": model,
            "engine": detector.engine.name,
            "size": list(detector.engine.size),
            "batch": batch,
            "rounds": len(own),
            "ms": 1000 * median(own) / batch,  # a picture
            "ms_least": 1000 * min(own) / batch,
            "ms_most": 1000 * max(own) / batch,
            "pictures_per_second": batch / median(own),
            "times_first": ratio(times["0"], own),
        }
        for (model, detector), own in zip(contenders, times.values(), strict=True)
    ]


def _show(rows: Sequence[dict[str, Any]]) -> None:
    header = ("model", "runs on", "size", "ms a picture", "least..most", "img/s", "x first")
    table(
        header,
        [
            (
                row["model"],
                row["engine"],
                "{}x{}".format(*row["size"]),
                f"{row['ms']:.1f}",
                f"{row['ms_least']:.1f}..{row['ms_most']:.1f}",
                f"{row['pictures_per_second']:.1f}",
                f"{row['times_first']:.2f}",
            )
            for row in rows
        ],
    )
