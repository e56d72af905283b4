"""The programs of examples/ that use an exported file from C++ and JavaScript.

They run where what they need is: ONNX Runtime's headers and library (ONNXRUNTIME names their
folder), and `npm install` done in examples/js. Expected values are worked out with numpy here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.exported import CLASSES, SHARES, write_exported

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three objects anywhere; their scores are the means of red, green and blue."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    write_exported(path, resize=True)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A PPM file of 30 x 20 pixels, redder than green, greener than blue."""
    noise = np.random.default_rng(0).integers(0, 30, (20, 30, 3))
    pixels = (noise + np.array([200, 100, 50])).astype(np.uint8)
    path = tmp_path / "picture.ppm"
    path.write_bytes(b"P6\n30 20\n255\n" + pixels.tobytes())
    return path


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the C++ program, built."""
    folder = Path(os.environ.get("ONNXRUNTIME", "/usr"))
    headers = [*folder.glob("include/**/onnxruntime_cxx_api.h")]
    if not (headers and shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("no CMake, C++ compiler, or headers of ONNX Runtime in $ONNXRUNTIME or /usr")
    build = tmp_path_factory.mktemp("build")
    setup = ["cmake", "-S", str(EXAMPLES / "cpp"), "-B", str(build), f"-DONNXRUNTIME={folder}"]
    flags = "-DCMAKE_CXX_FLAGS=-Werror"
    for command in ([*setup, flags], ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    return [str(build / "detect")]


@pytest.fixture(scope="module")
def js() -> list[str]:
    """The command of the JavaScript program."""
    node = shutil.which("node")
    if not node or not (EXAMPLES / "js" / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip("no Node.js, or `npm install --ignore-scripts` isn't done in examples/js")
    return [node, str(EXAMPLES / "js" / "detect.mjs")]


def expected(picture: Path, least: float) -> list[list[str]]:
    """The label and the numbers that each line should have."""
    pixels = np.frombuffer(picture.read_bytes()[-20 * 30 * 3 :], np.uint8).reshape(-1, 3)
    lines = []
    for name, score, share in zip(CLASSES, pixels.mean(0) / 255, SHARES, strict=True):
        box = np.array(share) * [30, 20, 30, 20]
        if score >= least:
            lines.append([name, f"{score:.4f}", *(f"{side:.2f}" for side in box)])
    return lines


@pytest.mark.parametrize("language", ["cpp", "js"])
def test_detects(language: str, model: Path, picture: Path, request: pytest.FixtureRequest) -> None:
    command = request.getfixturevalue(language)
    for least in (0, 0.3, 1):
        arguments = [*command, str(model), str(picture), str(least)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
        found = [line.rsplit(maxsplit=5) for line in done.stdout.splitlines()]
        if language == "cpp":  # which prints a name as the metadata write it
            found = [[name.encode().decode("unicode_escape"), *rest] for name, *rest in found]
        assert (found, done.returncode, done.stderr) == (expected(picture, least), 0, "")


@pytest.mark.parametrize("language", ["cpp", "js"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "detect"),
        (b"", "expected a PPM file (P6, 8 bits)"),
        (b"P5\n3 2\n255\n123456", "expected a PPM file (P6, 8 bits)"),
        (b"P6\n3 2\n255\n123456", "PPM file|ends too early"),
        (b"P6\n99999999 99999999\n255\n12", "PPM file|ends too early"),
    ],
)
def test_bad_pictures(
    language: str,
    content: bytes | None,
    said: str,
    model: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """One line, and no crash."""
    command = [*request.getfixturevalue(language), str(model)]
    if content is not None:
        (tmp_path / "bad.ppm").write_bytes(content)
        command.append(str(tmp_path / "bad.ppm"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert any(words in done.stderr for words in said.split("|"))


@pytest.mark.parametrize(("name", "most"), [("cpp/detect.cpp", 60), ("js/detect.mjs", 60)])
def test_short(name: str, most: int) -> None:
    assert len((EXAMPLES / name).read_text("utf-8").splitlines()) <= most
