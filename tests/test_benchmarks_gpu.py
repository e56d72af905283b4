"""benchmarks/gpu.py runs on a CPU, in tiny sizes; what it counts with is what others publish."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from triscale.model.yolo import ModelConfig

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        words, check=False, capture_output=True, text=True, cwd=folder, env=environment
    )


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_steps")


@pytest.mark.parametrize(
    ("backbone", "side", "expected"),
    [
        # Darknet's website, for COCO: "FLOPS 65.86 Bn" at 416, 38.97 at 320, 140.69 at 608; tiny
        # 5.56. They count the batch norms too.
        ("darknet53", 416, 65.86e9),
        ("darknet53", 320, 38.97e9),
        ("darknet53", 608, 140.69e9),
        ("tiny", 416, 5.56e9),
    ],
)
def test_operations(steps: ModuleType, backbone: str, side: int, expected: float) -> None:
    config = ModelConfig(backbone=backbone)
    assert steps.forward_flops(config, side, classes=80) == pytest.approx(expected, rel=0.01)


def test_it_runs(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--smoke", "--json"]
    words += ["--peak-tflops", "1"]
    done = run(words, tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = report["rows"]
    assert [row["what"] for row in rows] == [
        *["step, 64"] * 5,
        *["step, 64 to 96"] * 5,
        *["inference, 64"] * 4,
        *["data, 1 workers"] * 2,
    ]
    for row in rows:
        assert 0 < row["img/s"] < math.inf, row
    # a training picture of tiny at 64: three times 5.56e9 less the classes, (64 / 416) squared
    assert rows[0]["MFU, %"] == pytest.approx(rows[0]["img/s"] * 0.384e9 / 1e10, rel=0.02)
    assert rows[0]["of plain"] == 1
    assert 0 <= rows[-1]["waited, %"] <= 100
    assert report["notes"][0].startswith("tiny at 64: 0.4 GFLOP for a training picture")


def test_without_a_gpu(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cuda"]
    done = run(words, tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "no GPU is there; --device cpu --smoke" in done.stderr
