"""What OpenVINO does behind the user's back, and that it doesn't with us.

The watcher is Python's own audit hook, which sees each socket call of a process and those it forks,
and forbids it, so that nothing leaves the machine either way.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
WATCH = """
import os, sys, time
log = os.open(sys.argv[1] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def watch(event, arguments):
    if event in ("socket.__new__", "socket.getaddrinfo", "socket.connect", "socket.sendto"):
        os.write(log, f"{event}\\n".encode())
        raise OSError("not here")
sys.addaudithook(watch)
"""
USE = """
import numpy as np
import openvino
from onnx import TensorProto, helper
kind = TensorProto.FLOAT, [1, 3]
x, y = (helper.make_tensor_value_info(name, *kind) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "small", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
open(sys.argv[1], "wb").write(model.SerializeToString())
openvino.save_model(openvino.convert_model(sys.argv[1]), sys.argv[1] + ".xml")
compiled = openvino.Core().compile_model(sys.argv[1] + ".xml", "CPU")
print(compiled(np.array([[-1, 0, 2]], np.float32))[0].tolist())
time.sleep(1)  # the message is sent by a process of its own
"""
REFUSE = "from triscale.engines.telemetry import refuse_telemetry; refuse_telemetry()"


def tried(code: str, home: Path) -> set[str]:
    """The socket calls of a fresh process that isn't on a build server, where telemetry rests."""
    servers = re.compile("CI|TF_BUILD|JENKINS_URL")
    environment = {k: v for k, v in os.environ.items() if not servers.fullmatch(k)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(home / "small.onnx")],
        env={**environment, "HOME": str(home), "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("[[0.0, 0.0, 2.0]]\n", 0), done.stderr
    return set((home / "small.onnx.log").read_text().split())


def need(*packages: str) -> None:
    """Looked up, not imported: another test of this process may have refused the import."""
    for package in packages:
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} isn't installed")


def test_nothing_is_sent(tmp_path: Path) -> None:
    need("openvino", "onnx")
    assert tried(WATCH + REFUSE + USE, tmp_path) == set()
    assert not (tmp_path / "intel").exists()  # nor is the user given a number


def test_the_watcher_sees_what_would_be_sent(tmp_path: Path) -> None:
    """Without us a message is tried. Should this fail one day, OpenVINO has mended its ways."""
    need("openvino", "openvino-telemetry", "onnx")
    assert tried(WATCH + USE, tmp_path) >= {"socket.getaddrinfo"}
    assert (tmp_path / "intel").is_dir()


def test_nobody_forgets() -> None:
    """Each `import openvino` of ours comes after the call."""
    paths = [path for path in SRC.rglob("*.py") if path.name != "telemetry.py"]
    for path in paths:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        for before, line in pairwise(lines):
            if re.match("(import|from) (openvino|nncf)", line):
                assert before == "refuse_telemetry()", path
