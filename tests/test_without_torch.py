"""What needs no torch: an exported file, with the core and the extra `runtime` (and `serve`).

Packages of the other extras are blocked, as if they weren't installed. Expected values: a picture
of one colour stays that colour when it is resized, so that the file's scores are its levels.
"""

from __future__ import annotations

import json
import os
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
from tests.serve.clients import detect, process

ROOT = Path(__file__).resolve().parents[1]
COLOUR = 204, 102, 51  # 0.8, 0.4, 0.2 of 255
BLOCK = """
import sys
for name in {names}:
    sys.modules[name] = None
"""
TRAIN = "pip install 'triscale[train]'"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH for processes that have only the core and the extras `runtime` and `serve`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    there, others = set[str](), set[str]()
    for extra, texts in {
        "core": project["dependencies"],
        **project["optional-dependencies"],
    }.items():
        if extra not in ("all", "docs", "dev"):
            names = {canonicalize_name(Requirement(text).name) for text in texts} - {"triscale"}
            (there if extra in ("core", "runtime", "serve") else others).update(names)
    modules = {
        module
        for module, names in packages_distributions().items()
        if (others - there) & set(map(canonicalize_name, names))
    }
    assert {"torch", "matplotlib", "onnx", "openvino"} <= modules
    assert not {"numpy", "cv2", "PIL", "rich", "onnxruntime"} & modules
    folder = tmp_path_factory.mktemp("block")
    (folder / "sitecustomize.py").write_text(BLOCK.format(names=sorted(modules)))
    return os.pathsep.join([str(folder), str(ROOT / "src")])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a network and a picture."""
    pytest.importorskip("onnxruntime")
    write_exported(tmp_path / "model.onnx", resize=False)
    Image.new("RGB", (50, 20), COLOUR).save(tmp_path / "picture.png")
    (tmp_path / "w.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.usefixtures("folder")
def test_detector(path: str) -> None:
    code = """
import sys
from triscale import Detector
detector = Detector("model.onnx")
found = detector(["picture.png"] * 3)[2]
print(found.scores.tolist(), found.labels.tolist(), found.boxes[1].tolist(), detector.classes)
print([name for name in "hotcoco matplotlib onnx safetensors tomli_w torch yaml".split()
       if sys.modules.get(name)])
"""
    done = run(path, "-c", code)
    assert done.stderr == ""
    found, loaded = done.stdout.splitlines()
    scores = [round(v, 4) for v in json.loads(found.partition("]")[0] + "]")]
    assert scores == [0.8, 0.4, 0.2]
    assert found.endswith(f"[0, 1, 2] [0.0, 0.0, 25.0, 20.0] {CLASSES}")
    assert loaded == "[]"


def test_predict(path: str, folder: Path) -> None:
    """The command, with everything it can write."""
    words = "predict model.onnx picture.png --json --out drawn --coco coco.json --yolo yolo"
    done = run(path, "-m", "triscale", *words.split())
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"triscale: onnxruntime .*, CPU\n", done.stderr)
    found = json.loads(done.stdout)["detections"]
    assert [(one["label"], round(one["score"], 4)) for one in found] == [
        (CLASSES[0], 0.8),
        (CLASSES[1], 0.4),
    ]
    with Image.open(folder / "drawn" / "picture.png") as drawn:
        assert drawn.size == (50, 20)
        assert len(drawn.getcolors() or []) > 2  # letters
    assert len(json.loads((folder / "coco.json").read_text())) == 2
    assert len((folder / "yolo" / "picture.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve(workers: str, path: str, folder: Path) -> None:
    """A server of its own, and one with processes of its own."""
    model, body = folder / "model.onnx", (folder / "picture.png").read_bytes()
    with process(model, folder, "--workers", workers, PYTHONPATH=path) as server:
        answer = detect(server.port, body, kind="image/png")
    assert answer.status == 200
    (found,) = answer.json()["images"]
    assert [(one["label"], round(one["score"], 4)) for one in found["detections"]] == [
        (CLASSES[0], 0.8),
        (CLASSES[1], 0.4),
    ]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("words", ["recipes", "recipes small", "download list", "train --help"])
def test_what_works_as_well(words: str, path: str) -> None:
    done = run(path, "-m", "triscale", *words.split())
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("triscale train data", f"this needs torch, which isn't installed: {TRAIN}"),
        ("triscale train --resume run", f"this needs torch, which isn't installed: {TRAIN}"),
        ("triscale eval w.safetensors data", f"this needs torch, which isn't installed: {TRAIN}"),
        ("triscale check data", f"this needs torch, which isn't installed: {TRAIN}"),
        ("triscale preview data", f"this needs torch, which isn't installed: {TRAIN}"),
        ("triscale anchors data", f"this needs torch, which isn't installed: {TRAIN}"),
        (
            "triscale anchors data --out look",
            f"triscale anchors --out needs torch and matplotlib, which aren't installed: {TRAIN}",
        ),
        ("triscale report run", f"this needs torch, which isn't installed: {TRAIN}"),
        (
            "triscale convert w.safetensors w.weights",
            f"this needs torch, which isn't installed: {TRAIN}",
        ),
        ("triscale download darknet53", f"this needs torch, which isn't installed: {TRAIN}"),
        (
            "triscale export w.safetensors out.onnx",
            "triscale export needs torch, which isn't installed: pip install 'triscale[export]'",
        ),
        (
            "triscale predict w.safetensors picture.png",
            f"w.safetensors needs torch, which isn't installed: {TRAIN}",
        ),
        (
            "triscale predict model.onnx picture.png --precision bf16",
            "model.onnx in bf16 needs openvino, which isn't installed: "
            "pip install 'triscale[openvino]'",
        ),
        (
            "triscale predict nothing.onnx picture.png",
            "nothing.onnx: no such weights file or run folder",
        ),
        ("triscale.train_yolo3", f"this needs torch, which isn't installed: {TRAIN}"),
        ("triscale.demo --out demo", f"this needs torch, which isn't installed: {TRAIN}"),
    ],
)
def test_the_rest_says_what_is_missing(words: str, said: str, path: str) -> None:
    done = run(path, "-m", *words.split())
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr == f"triscale: error: {said}\n"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.usefixtures("folder")
def test_a_server_says_it_too(workers: str, path: str) -> None:
    words = f"triscale serve w.safetensors --port 0 --workers {workers}"
    done = run(path, "-m", *words.split())
    assert (done.stdout, done.returncode) == ("", 2)
    last = done.stderr.splitlines()[-1]
    assert last == f"triscale: error: w.safetensors needs torch, which isn't installed: {TRAIN}"
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("folder")
def test_from_python(path: str) -> None:
    code = """
import triscale
def of(call):
    try:
        call()
    except triscale.UserError as error:
        print(error)
of(lambda: triscale.Detector("w.safetensors"))
of(lambda: triscale.train)
def statement():
    from triscale import load_recipe
of(statement)
for name in ("open_dataset", "coco_ap", "voc_ap", "Detections", "Sample"):
    getattr(triscale, name)
"""
    done = run(path, "-c", code)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{name} needs torch, which isn't installed: {TRAIN}"
        for name in ("w.safetensors", "triscale.train", "triscale.load_recipe")
    ]
