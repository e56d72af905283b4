"""What needs no torch: an exported file, found in with numpy, OpenCV, Pillow, rich and onnxruntime.

Other packages are blocked, as if they weren't installed. Expected values: a picture of one colour
stays that colour when it is resized, so that the file's scores are its levels.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.exported import CLASSES, write_exported

ROOT = Path(__file__).resolve().parents[1]
COLOUR = 204, 102, 51  # 0.8, 0.4, 0.2 of 255
BLOCK = """
import sys
for name in {names}:
    sys.modules[name] = None
"""
PREDICT = "from triscale.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def block() -> str:
    """Python that leaves of all our dependencies only those of the extra `runtime`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = {canonicalize_name(Requirement(text).name) for text in extras["runtime"]}
    others = {
        canonicalize_name(Requirement(text).name)
        for text in (*project["dependencies"], *extras["export"], *extras["openvino"])
    } - names
    modules = {
        m for m, d in packages_distributions().items() if others & set(map(canonicalize_name, d))
    }
    assert {"torch", "safetensors", "yaml", "tomli_w", "matplotlib", "hotcoco"} <= modules
    assert not {"numpy", "cv2", "PIL", "rich"} & modules
    return BLOCK.format(names=sorted(modules))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    write_exported(tmp_path / "model.onnx", resize=False)
    Image.new("RGB", (50, 20), COLOUR).save(tmp_path / "picture.png")
    return tmp_path


def run(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_detector(block: str, folder: Path) -> None:
    code = """
from triscale.predict import Detector
detector = Detector(sys.argv[1])
found = detector([sys.argv[2]] * 3)[2]
print(found.scores.tolist(), found.labels.tolist(), found.boxes[1].tolist(), detector.classes)
print([name for name in sys.modules if name.split(".")[0] in ("torch", "matplotlib", "onnx")
       and sys.modules[name]])
"""
    done = run(block + code, folder / "model.onnx", folder / "picture.png")
    assert done.stderr == ""
    found, loaded = done.stdout.splitlines()
    scores = [round(v, 4) for v in json.loads(found.partition("]")[0] + "]")]
    assert scores == [0.8, 0.4, 0.2]
    assert found.endswith(f"[0, 1, 2] [0.0, 0.0, 25.0, 20.0] {CLASSES}")
    assert loaded == "[]"


def test_predict(block: str, folder: Path) -> None:
    """The command, with everything it can write."""
    out = folder / "drawn"
    done = run(
        block + PREDICT,
        "predict",
        folder / "model.onnx",
        folder / "picture.png",
        *("--json", "--out", out, "--coco", folder / "coco.json", "--yolo", folder / "yolo"),
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"triscale: (OpenVINO|onnxruntime) .*, CPU\n", done.stderr)
    found = json.loads(done.stdout)["detections"]
    assert [(one["label"], round(one["score"], 4)) for one in found] == [
        (CLASSES[0], 0.8),
        (CLASSES[1], 0.4),
    ]
    with Image.open(out / "picture.png") as drawn:
        assert drawn.size == (50, 20)
        assert len(drawn.getcolors() or []) > 2  # letters
    assert len(json.loads((folder / "coco.json").read_text())) == 2
    assert len((folder / "yolo" / "picture.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "data"], "this needs the package"),
        (["predict", "w.safetensors", "picture.png"], "this needs the package"),
    ],
)
def test_the_rest_says_what_is_missing(
    block: str, folder: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "w.safetensors").touch()
    done = run(block + PREDICT, *arguments)
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr.startswith(f"triscale: error: {said}")
    assert done.stderr.endswith("install it with: pip install 'triscale[all]'\n")
