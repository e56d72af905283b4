"""Exported files as they may be found: damaged, foreign, hostile; and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exporting import CLASSES, drawn
from triscale.cli import main
from triscale.engines import machine
from triscale.engines.header import FORMAT, read_header
from triscale.engines.onnx import OnnxEngine
from triscale.engines.openvino import OpenVinoEngine
from triscale.errors import UserError
from triscale.predict import Detector

Engine = type[OnnxEngine] | type[OpenVinoEngine]


def foreign(data: bytes) -> bytes:
    """An ONNX file that adds two numbers."""
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "abc"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])], "g", values[:2], values[2:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def with_text(name: str, text: str | None) -> Callable[[bytes], bytes]:
    """The file with another text in its metadata, or without one."""

    def change(data: bytes) -> bytes:
        import onnx

        model = onnx.load_from_string(data)
        texts = {p.key: p.value for p in model.metadata_props} | {name: text}
        del model.metadata_props[:]
        for key, value in texts.items():
            if value is not None:
                model.metadata_props.add(key=key, value=value)
        return model.SerializeToString()

    return change


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "can't read it|expected a file that triscale export wrote"),
    "half": (lambda data: data[: len(data) // 2], "can't read it"),
    "noise": (lambda data: bytes(range(256)) * 100, "can't read it"),
    "another program's": (foreign, "expected a file that triscale export wrote"),
    "another format": (
        with_text("format", "x" * 999),
        "expected a file that triscale export wrote",
    ),
    "no classes": (with_text("classes", None), "its metadata is damaged"),
    "no JSON": (with_text("anchors", "[[["), "its metadata is damaged"),
    "deep JSON": (with_text("recipe", "[" * 100_000), "its metadata is damaged"),
    "no pictures": (with_text("batch", "0"), "its metadata is damaged"),
    "no size": (with_text("size", "[1e999, 0]"), "its metadata is damaged"),
    "another fit": (with_text("fit", '"round"'), "its metadata is damaged"),
}


@pytest.mark.parametrize("engine", [OnnxEngine, OpenVinoEngine])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name: str, engine: Engine, onnx_file: Path, tmp_path: Path) -> None:
    change, message = DAMAGED[name]
    path = tmp_path / "bad.onnx"
    path.write_bytes(change(onnx_file.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        engine(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x_openvino").mkdir()
    with pytest.raises(UserError, match=r"expected a folder that triscale export wrote"):
        Detector(tmp_path / "x_openvino")


def test_header_texts(onnx_file: Path) -> None:
    """What is written is what is read; the texts are JSON, for those who have no triscale."""
    header = OnnxEngine(onnx_file).header
    texts = header.texts()
    assert read_header(texts, source="x") == header
    assert texts["format"] == FORMAT
    assert json.loads(texts["classes"]) == list(CLASSES)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("openvino", "onnxruntime"), "OpenVINO"),
        (("onnxruntime",), "onnxruntime"),
        ((), r"pip install 'triscale\[runtime\]'$"),
    ],
)
def test_choice(
    there: tuple[str, ...], expected: str, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triscale.predict.is_here", lambda name: name in there)
    monkeypatch.setattr("triscale.packages.is_here", lambda name: name in there)
    if not there:
        with pytest.raises(UserError, match=expected):
            Detector(onnx_file)
        return
    assert Detector(onnx_file).engine.name.startswith(expected)
    if expected == "onnxruntime":
        with pytest.raises(UserError, match=r"in bf16 needs openvino, which isn't installed: "):
            Detector(onnx_file, precision="bf16")
    with pytest.raises(UserError, match="runs on the CPU"):
        Detector(onnx_file, device="cuda")


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process can't be bound to some cores, all count, up to what torch is told."""
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    for most, expected in ((None, 7), ("", 7), ("x", 7), ("0", 7), ("3", 3), ("99", 7)):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if most is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", most)
        assert machine.num_threads() == expected


def run_without(packages: str, code: str, *arguments: str) -> Any:
    """What Python code prints as JSON in a process that can't import some packages."""
    block = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {packages.split()!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", block + code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_torch(onnx_file: Path, tmp_path: Path) -> None:
    """Only what a small environment has: the same detections."""
    picture = drawn(1)[0]
    np.save(tmp_path / "picture.npy", picture)
    code = (
        "import json, numpy as np\n"
        "from triscale import Detector\n"
        "from triscale.engines.onnx import OnnxEngine\n"
        "detector = Detector(sys.argv[1])\n"
        "detector.engine = OnnxEngine(detector.path)\n"
        "found = detector(np.load(sys.argv[2]))\n"
        "print(json.dumps([found.scores.tolist(), found.boxes.tolist()]))\n"
    )
    scores, boxes = run_without(
        "torch torchvision onnx onnxscript safetensors hotcoco matplotlib",
        code,
        str(onnx_file),
        str(tmp_path / "picture.npy"),
    )
    expected = Detector(onnx_file.with_suffix(".safetensors"), device="cpu")(picture)
    assert len(expected) > 10
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-2)


def test_predict_says_what_runs(
    onnx_file: Path,
    devkit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = next((devkit / "VOC2007" / "JPEGImages").glob("*.jpg"))
    assert main(["predict", str(onnx_file), str(picture)]) == 0
    assert "OpenVINO" in capfd.readouterr().err
