"""How fast do pictures become detections, and where does the time go?

From decoded pictures of 640x480 to detections: validation transform, network, decoding and NMS, by
the Detector in each form that a network can take. `torch plain` is the network as it was trained,
in PyTorch's own memory format, `torch compiled` that one behind PyTorch's compiler; the others are
what the Detector makes of weights and of exported files. With --peers also GluonCV's network with
its transform and suppression, on MXNet. Weights are drawn: some hundred scores pass the threshold
in all programs. The ranges of int8 come from noise too, which changes results but not speed.

`limit` is the time of the network's arithmetic at the rate of PyTorch's best kernels here
(limit.py): no program that multiplies as often can be much faster. Below are the stages of one call
with `torch fp32`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from harness import Peer, Report, arguments, in_turns, peers, ratio
from limit import forward_flops, seconds_at_best

from triscale.engines.pytorch import TorchEngine
from triscale.export.int8 import quantise
from triscale.export.onnx import Form, header_of, write_onnx
from triscale.export.openvino import write_openvino
from triscale.model.compiled import compiled, compiling
from triscale.model.layers import ConvCell
from triscale.model.yolo import ModelConfig, YOLOv3, build_model
from triscale.normalise import network_input
from triscale.pixels import InputConfig
from triscale.predict import Detector
from triscale.turns import noise, steady
from triscale.weights.contents import WeightsInfo
from triscale.weights.formats import load_weights
from triscale.weights.native import save_weights

NETWORKS = ("darknet53", "mobilenet1.0")
CLASSES = tuple(f"class{i}" for i in range(20))
# those of the Detector by name: the file, the precision, the backend
PROGRAMS = {
    "torch plain": ("weights.safetensors", "fp32", "torch"),
    "torch compiled": ("weights.safetensors", "fp32", "torch"),
    "torch fp32": ("weights.safetensors", "fp32", "torch"),
    "torch bf16": ("weights.safetensors", "bf16", "torch"),
    "onnxruntime fp32": ("fp32.onnx", "fp32", "onnxruntime"),
    "onnxruntime int8": ("int8.onnx", "fp32", "onnxruntime"),
    "OpenVINO fp32": ("fp32_openvino", "fp32", "openvino"),
    "OpenVINO bf16": ("fp32_openvino", "bf16", "openvino"),
    "OpenVINO int8": ("int8_openvino", "fp32", "openvino"),
}
LIMITS = ("fp32", "bf16", "int8")
BASES = ("torch plain", "gluoncv")
COLUMNS = (
    *("network", "batch", "program", "ms a picture", "least..most", "img/s"),
    *(f"x {base}" for base in BASES),
)
Row = tuple[str | float, ...]


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    rows: list[Row] = []
    names: dict[str, str] = {}
    with peers(["gluoncv"] if words.peers else [], threads=words.threads) as others:
        for network in words.networks:
            with tempfile.TemporaryDirectory() as folder:
                write_files(Path(folder), network, words.size, programs=words.programs)
                detectors = {
                    name: make_detector(Path(folder), name, threads=words.threads)
                    for name in words.programs
                }
                for batch in words.batches:
                    rows += compared(network, batch, detectors, others=others, words=words)
                    if "torch fp32" in detectors:
                        rows += stages(network, batch, detectors["torch fp32"], words=words)
            names |= {name: detector.engine.name for name, detector in detectors.items()}
        versions = {name: v for peer in others.values() for name, v in peer.versions.items()}
    notes = (
        f"Network input {words.size}x{words.size}, {words.threads} threads, {words.rounds} rounds; "
        "ratios are medians of the rounds', above 1 is faster.",
        "Programs: " + "; ".join(f"{name}: {engine}" for name, engine in names.items()) + ".",
    )
    Report("Inference", COLUMNS, rows, notes, versions).show(as_json=words.json)


def write_files(folder: Path, network: str, size: int, *, programs: Sequence[str]) -> None:
    """What the programs read."""
    files = {PROGRAMS[name][0] for name in programs}
    model, info = drawn(network, size)
    save_weights(folder / "weights.safetensors", model, info)
    if files == {"weights.safetensors"}:
        return
    form = Form((size, size))
    onnx, header = folder / "fp32.onnx", header_of(info, model, form, precision="fp32")
    write_onnx(onnx, model, info, form, header=header)
    if "fp32_openvino" in files:
        write_openvino(folder / "fp32_openvino", onnx, header=header, half=False)
    header = replace(header, precision="int8")
    for fused, name in ((False, "int8.onnx"), (True, "int8_openvino")):
        if name not in files:
            continue
        images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        inputs = [{"images": image[None], "sizes": np.array([[480, 640]])} for image in images]
        path = folder / ("fused.onnx" if fused else name)
        path.write_bytes(onnx.read_bytes())
        quantise(path, inputs, header=header, fused=fused)
        if fused:
            write_openvino(folder / name, path, header=header, half=False)


def drawn(network: str, size: int) -> tuple[YOLOv3, WeightsInfo]:
    """A network whose signals keep their size, and whose logits spread by about 1."""
    config = ModelConfig(backbone=network, init="kaiming")
    generator = torch.Generator().manual_seed(0)
    model = build_model(config, len(CLASSES), generator=generator)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ConvCell):
                module.norm.momentum = 1.0
        model.train()(torch.randn(2, 3, size, size, generator=generator))
        for output in model.head.outputs:
            output.weight.normal_(0, output.weight.shape[1] ** -0.5, generator=generator)
            output.bias.zero_().view(-1, 5 + len(CLASSES))[:, 4] = -6  # objectness, as in the peer
    return model.eval(), WeightsInfo(CLASSES, config, size, InputConfig(), {})


def make_detector(folder: Path, name: str, *, threads: int) -> Detector:
    """One of PROGRAMS."""
    file, precision, backend = PROGRAMS[name]
    detector = Detector(
        folder / file, device="cpu", precision=precision, backend=backend, threads=threads
    )
    if name in ("torch plain", "torch compiled"):
        engine = cast("TorchEngine", detector.engine)
        model = load_weights(folder / file)[0].eval()
        engine.model = compiled(model) if name == "torch compiled" else model
    return detector


def compared(
    network: str,
    batch: int,
    detectors: dict[str, Detector],
    *,
    others: dict[str, Peer],
    words: argparse.Namespace,
) -> list[Row]:
    """A row per program."""
    pictures = noise(1) * batch
    programs: dict[str, Callable[[], float]] = {}
    if "gluoncv" in others and network != "tiny":  # which it doesn't have
        programs["gluoncv"] = partial(
            peer_seconds, others["gluoncv"], network=network, batch=batch, size=words.size
        )
    for name, detector in detectors.items():
        programs[name] = partial(steady, partial(detector.batch, pictures))
    flops = batch * forward_flops(ModelConfig(backbone=network), words.size)
    for precision in LIMITS:
        programs[f"limit {precision}"] = partial(seconds_at_best, flops, precision)
    with torch.inference_mode(), warnings.catch_warnings(), compiling(2 * len(words.batches)):
        warnings.simplefilter("ignore")  # the compiler's
        times = in_turns(programs, rounds=words.rounds)
    rows: list[Row] = []
    for name, own in times.items():
        median, least, most = (1000 * f(own) / batch for f in (statistics.median, min, max))
        # times, so the other way round
        gains = [f"{ratio(times[base], own):.2f}" if base in times else "-" for base in BASES]
        spread = f"{least:.1f}..{most:.1f}"
        rows.append((network, batch, name, f"{median:.1f}", spread, f"{1000 / median:.2f}", *gains))
    return rows


def peer_seconds(peer: Peer, *, network: str, batch: int, size: int) -> float:
    """The seconds of a call, after one that isn't counted; as in `steady` others may rest."""
    time.sleep(0.2)
    asked = {"network": network, "batch": batch, "size": size}
    return peer.ask("inference", **asked, runs=1, from_picture=True)["seconds"]


def stages(network: str, batch: int, detector: Detector, *, words: argparse.Namespace) -> list[Row]:
    """A row per stage of a call."""
    pictures = noise(1) * batch
    engine = cast("TorchEngine", detector.engine)
    with torch.inference_mode():
        fitted, sizes = detector.prepare(pictures)
        prepared = engine.batch(fitted, sizes)
        images = network_input(prepared, engine.info.input)
        predictions = engine.model(images)
        parts: dict[str, Callable[[], object]] = {
            "transform": partial(detector.prepare, pictures),
            "input": partial(network_input, prepared, engine.info.input),
            "network": partial(engine.model, images),
            "decode + NMS": partial(engine.results, predictions, sizes),
        }
        programs = {name: partial(steady, part) for name, part in parts.items()}
        times = in_turns(programs, rounds=words.rounds)
    return [
        (network, batch, f"- {name}", f"{1000 * statistics.median(own) / batch:.2f}", *[""] * 4)
        for name, own in times.items()
    ]


if __name__ == "__main__":
    main()
