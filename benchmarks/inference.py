"""How fast do pictures become detections, and where does the time go?

From decoded pictures of 640x480 to detections: validation transform, network, decoding and NMS.
`fp32` and `bf16` are the Detector with that precision, `plain` is it with the network as it was
trained, in PyTorch's own memory format; below are the stages of one call of the Detector. With
--peers also GluonCV's network with its transform and suppression, on MXNet. Weights are drawn so
that nothing passes the score's threshold, in the peer too. `limit` is the time of the network's
arithmetic at the rate of PyTorch's best kernels here (limit.py).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Peer, Report, arguments, in_turns, peers, ratio
from limit import forward_flops, seconds_at_best
from numpy.typing import NDArray

from triscale.decode import detect, detections
from triscale.model.folded import faster_precision, fold
from triscale.model.yolo import ModelConfig, build_model
from triscale.normalise import network_input
from triscale.pixels import InputConfig
from triscale.predict import Detector
from triscale.weights.contents import WeightsInfo
from triscale.weights.formats import load_weights
from triscale.weights.native import save_weights

NETWORKS = ("darknet53", "mobilenet1.0", "mobilenet0.25", "tiny")
COLUMNS = ("network", "batch", "program", "ms a picture", "img/s", "x plain", "x gluoncv")
Row = tuple[str | float, ...]
Pictures = list[NDArray[np.uint8]]


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    rows: list[Row] = []
    costs: list[str] = []
    began = time.perf_counter()
    chosen = faster_precision(torch.device("cpu"))
    costs.append(f"`auto` chooses {chosen}, in {time.perf_counter() - began:.2f} s.")
    with peers(["gluoncv"] if words.peers else [], threads=words.threads) as others:
        for network in words.networks:
            detectors, cost = make_detectors(network, words.size)
            costs.append(cost)
            for batch in words.batches:
                rows += compared(network, batch, detectors, others=others, rounds=words.rounds)
                rows += stages(network, batch, detectors, rounds=words.rounds)
        versions = {name: v for peer in others.values() for name, v in peer.versions.items()}
    note = f"Network input {words.size}x{words.size}, {words.threads} threads. "
    Report("Inference", COLUMNS, rows, (note + " ".join(costs),), versions).show(as_json=words.json)


def make_detectors(network: str, size: int) -> tuple[dict[str, Detector], str]:
    """The contenders by name, and what the folding costs."""
    config = ModelConfig(backbone=network, init="kaiming", objectness_prior=1e-4)
    classes = tuple(f"class{i}" for i in range(20))
    model = build_model(config, len(classes), generator=torch.Generator().manual_seed(0)).eval()
    seconds: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        fold(model)
        seconds.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.safetensors"
        save_weights(path, model, WeightsInfo(classes, config, size, InputConfig(), {}))
        detectors = {
            "plain": Detector(path, device="cpu"),
            "fp32": Detector(path, device="cpu", precision="fp32"),
            "bf16": Detector(path, device="cpu", precision="bf16"),
        }
        detectors["plain"].model, _ = load_weights(path)
    return detectors, f"Folding {network} takes {statistics.median(seconds):.2f} s."


def compared(
    network: str,
    batch: int,
    detectors: dict[str, Detector],
    *,
    others: dict[str, Peer],
    rounds: int,
) -> list[Row]:
    """A row per program."""
    drawn = pictures(batch)
    programs: dict[str, Callable[[], float]] = {
        name: partial(seconds_of, partial(detector.batch, drawn))
        for name, detector in detectors.items()
    }
    if "gluoncv" in others and network != "tiny":  # which it doesn't have
        ask = partial(others["gluoncv"].ask, "inference", network=network, batch=batch)
        size = detectors["fp32"].info.size
        programs["gluoncv"] = lambda: ask(size=size, runs=1, from_picture=True)["seconds"]
    flops = batch * forward_flops(ModelConfig(backbone=network), detectors["fp32"].info.size)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        programs[f"limit {precision}"] = partial(seconds_at_best, flops, dtype)
    times = in_turns(programs, rounds=rounds)
    rows: list[Row] = []
    for name, own in times.items():
        seconds = statistics.median(own) / batch
        # times, so the other way round
        gains = [
            f"{ratio(times[it], own):.2f}" if it in times else "-" for it in ("plain", "gluoncv")
        ]
        rows.append((network, batch, name, f"{1000 * seconds:.2f}", f"{1 / seconds:.2f}", *gains))
    return rows


def stages(network: str, batch: int, detectors: dict[str, Detector], *, rounds: int) -> list[Row]:
    """A row per stage of a call; the network's is there for each of its forms."""
    drawn, detector = pictures(batch), detectors["fp32"]
    size, fit = (
        (detector.engine.info.size, detector.engine.info.size),
        detector.engine.info.input.fit,
    )
    grid = detector.engine.model.grid(size)
    with torch.inference_mode():
        prepared = detector.engine.batch(*detector.prepare(drawn))
        images = network_input(prepared, detector.engine.info.input)
        raw = detector.engine.model(images)

        def results() -> None:
            decoded = detect(raw, grid, detector.engine.decode)
            detections(decoded, size, original_sizes=prepared.original_sizes, fit=fit)

        parts: dict[str, Callable[[], object]] = {
            "transform": partial(detector.prepare, drawn),
            "input": partial(network_input, prepared, detector.engine.info.input),
            **{
                f"network, {name}": partial(d.engine.model, images) for name, d in detectors.items()
            },
            "decode + NMS": results,
        }
        programs = {name: partial(seconds_of, part) for name, part in parts.items()}
        times = in_turns(programs, rounds=rounds)
    return [
        (network, batch, f"- {name}", f"{1000 * statistics.median(own) / batch:.2f}", "", "", "")
        for name, own in times.items()
    ]


def pictures(number: int) -> Pictures:
    """Noise of 640x480."""
    shape = (number, 480, 640, 3)
    return list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
