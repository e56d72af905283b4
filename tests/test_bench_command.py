"""`triscale bench inference`: what is measured is what was asked for.

How fast something is can't be tested; that the figures agree with each other can.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.exported import write_exported
from triscale.cli import main
from triscale.engines.header import read_header
from triscale.predict import Detector

QUICK = ("--seconds", "0", "--threads", "1")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    write_exported(tmp_path / "simple.onnx", resize=False)  # for 64x64
    return tmp_path / "simple.onnx"


def bench(*words: str | Path) -> int:
    return main(["bench", "inference", *map(str, words), *QUICK])


def test_json(trained: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model with each backend at each batch; milliseconds, rates and ratios agree."""
    assert bench(trained, exported, "--batch", "1,3", "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert (found["threads"], found["pictures"]) == (1, "1 of 640x480")
    rows = found["rows"]
    assert [(row["model"], row["batch"]) for row in rows] == [
        (str(model), batch) for batch in (1, 3) for model in (trained, exported)
    ]
    assert rows[0]["engine"].startswith("torch ")
    assert rows[1]["engine"] == Detector(exported).engine.name
    for row in rows:
        assert row["size"] == [64, 64]
        assert row["rounds"] == 3
        assert 0 < row["ms_least"] <= row["ms"] <= row["ms_most"]
        assert row["pictures_per_second"] == pytest.approx(1000 / row["ms"])
    assert [row["times_first"] for row in rows[::2]] == [1.0, 1.0]


def test_backends_and_precisions(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table names what ran, and in which precision."""
    pytest.importorskip("openvino")
    assert bench(exported, "--backend", "openvino,onnxruntime") == 0
    facts, blank, title, header, *rows = capsys.readouterr().out.splitlines()
    assert facts.startswith("processor ")
    assert (blank, title) == ("", "batch 1, 3 rounds by turns")
    assert header.split()[:3] == ["model", "runs", "on"]
    assert ["OpenVINO" in rows[0], "onnxruntime" in rows[1]] == [True, True]
    assert all(", fp32, CPU" in row and "64x64" in row for row in rows)


def test_pictures_and_size(trained: Path, devkit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = devkit / "VOC2007" / "JPEGImages"
    assert bench(trained, "--size", "96x128", "--pictures", pictures, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == "14 of 128x96"
    assert found["rows"][0]["size"] == [96, 128]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nothing.onnx", "nothing.onnx: no such weights file or run folder"),
        ("{onnx} --size 96", "simple.onnx: takes pictures of 64x64, not of 96x96"),
        ("{onnx} --size 97", "size: expected multiples of 32 from 32 to 8192, got 97"),
        ("{onnx} --size big", "--size: expected N or HxW, got 'big'"),
        ("{fixed} --batch 2,3", "fixed.onnx: takes 2 pictures at once; --batch 3 doesn't fit"),
        ("{onnx} --batch 0", "--batch: expected 1 to 999, got '0'"),
        ("{onnx} --batch", "--batch: expected 1 to 999, got ''"),
        ("{onnx} --threads none", "--threads: expected 1 to 999, got 'none'"),
        ("{onnx} --seconds -1", "--seconds: expected 0 to 3600, got -1"),
        ("{onnx} --backend tensorrt", "--backend: expected some of auto, openvino, onnxruntime"),
        ("{onnx} --backend torch", "simple.onnx: is ONNX, which torch doesn't run"),
        ("{run} --backend openvino", "openvino runs what triscale export writes, no weights"),
        ("{onnx} --precision bf16 --backend onnxruntime", "onnxruntime has no bf16 on CPUs"),
        ("{onnx} --precision fp8", "--precision: expected some of fp32, bf16, auto, got 'fp8'"),
        ("{onnx} --pictures nowhere", "nowhere: no picture or video found"),
        ("{onnx} --pictures {onnx}", "simple.onnx: "),
    ],
)
def test_mistakes(
    words: str,
    message: str,
    trained: Path,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, exit code 2, before anything is measured."""
    fixed = exported.with_name("fixed.onnx")
    shutil.copy(exported, fixed)
    with_batch(fixed, 2)
    filled = [word.format(onnx=exported, fixed=fixed, run=trained) for word in words.split()]
    if filled[-1] == "--batch":
        filled.append("")
    assert main(["bench", "inference", *filled]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert message in printed.err


def with_batch(path: Path, number: int) -> None:
    """Say in a file's metadata that it takes that many pictures."""
    import onnx

    model = onnx.load(path)
    texts = {p.key: p.value for p in model.metadata_props} | {"batch": str(number)}
    assert read_header(texts, source="x").batch == number
    onnx.helper.set_model_props(model, texts)
    onnx.save_model(model, path)
