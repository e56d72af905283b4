"""How long does a command take to start?

Whole processes: `triscale --help`; `triscale predict` on one picture with darknet53, and what of it
nobody could save: `import torch`, and that with the weights read and looked at once.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from harness import PEERS, Report, arguments, in_turns, ratio

from triscale.data.classes import VOC_CLASSES
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import InputConfig
from triscale.weights.contents import WeightsInfo
from triscale.weights.native import save_weights

IMPORT = "import torch"
READ = """
from safetensors import safe_open
import sys, torch
with safe_open(sys.argv[1], framework="pt") as file:
    sum(file.get_tensor(name).sum() for name in file.keys())
"""
LOAD = "import sys; from triscale.predict import Detector; Detector(sys.argv[1])"
REFERENCE = "import mxnet, gluoncv"
SIZE = 416


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--network", default="darknet53", help="backbone of the weights")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, picture = folder / "weights.safetensors", folder / "picture.jpg"
        make_weights(weights, chosen.network)
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        cv2.imwrite(str(picture), cv2.GaussianBlur(noise, None, 5))
        python, ours = [sys.executable, "-c"], [sys.executable, "-m", "triscale"]
        predict = [*ours, "predict", "--out", str(folder / "out"), str(weights), str(picture)]
        commands = {
            "triscale --help": [*ours, "--help"],
            "import torch": [*python, IMPORT],
            "import torch, read the weights": [*python, READ, str(weights)],
            "triscale.Detector": [*python, LOAD, str(weights)],
            "triscale predict": predict,
        }
        reference = PEERS / "gluoncv" / "bin" / "python"
        if chosen.peers and reference.exists():
            commands["import mxnet, gluoncv"] = [str(reference), "-W", "ignore", "-c", REFERENCE]
        elif chosen.peers:
            print("gluoncv is left out (make peers)", file=sys.stderr)
        contenders = {label: partial(seconds, command) for label, command in commands.items()}
        figures = in_turns(contenders, rounds=chosen.rounds)
    floor = figures["import torch, read the weights"]
    rows = [
        (name, statistics.median(times), ratio(times, floor)) for name, times in figures.items()
    ]
    columns = ("process", "seconds", f"/ import torch, read {chosen.network}")
    notes = (
        "Wall time from start to end, files in the page cache. Detector: ready to detect; "
        "predict: also one detection on the CPU, drawn and written.",
    )
    Report("Start-up", columns, rows, notes).show(as_json=chosen.json)


def seconds(command: Sequence[str]) -> float:
    """The wall time of a process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def make_weights(path: Path, network: str) -> None:
    """A weights file of VOC's classes with drawn weights."""
    config = ModelConfig(backbone=network, init="kaiming", objectness_prior=0.01)
    model = build_model(config, len(VOC_CLASSES), generator=torch.Generator().manual_seed(0))
    save_weights(path, model, WeightsInfo(VOC_CLASSES, config, SIZE, InputConfig(), {}))


if __name__ == "__main__":
    main()
