"""A server of this process or of its own, and a client of few words."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from triscale.detections import Detections
from triscale.serve.app import Service
from triscale.serve.metrics import WIDTH, Metrics
from triscale.serve.server import run_server
from triscale.serve.settings import Settings

CLASSES = ("disc", "square")
JPEG = {"Content-Type": "image/jpeg"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Fake:
    """A detector that finds one box as large as the picture, when its gate is open."""

    classes = CLASSES

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def batch(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        self.batches.append(len(images))
        assert self.gate.wait(30)
        if any(image.shape[:2] == (13, 13) for image in images):
            raise RuntimeError("thirteen")
        if any(image.shape[:2] == (14, 14) for image in images):
            raise MemoryError
        return [
            Detections(
                np.array([[0, 0, image.shape[1], image.shape[0]]], np.float32),
                np.array([0.75], np.float32),
                np.array([1]),
                CLASSES,
            )
            for image in images
        ]


def picture(height: int = 20, width: int = 30, *, suffix: str = ".jpg", seed: int = 0) -> bytes:
    """A file's content."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


def ask(
    port: int, path: str, body: bytes | None = None, *, method: str = "", **headers: str
) -> Answer:
    """One request on a connection of its own; underscores of header names are dashes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        words = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, words)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()


def detect(port: int, body: bytes, *, query: str = "", kind: str = "image/jpeg") -> Answer:
    return ask(port, f"/detect{query}", body, Content_Type=kind)


def detect_json(port: int, files: Sequence[bytes], *, query: str = "") -> Answer:
    body = json.dumps({"images": [base64.b64encode(data).decode() for data in files]})
    return detect(port, body.encode(), query=query, kind="application/json")


def assert_close(shown: list[Any], expected: list[Any]) -> None:
    """Sums of a batch may be in another order than those of one picture."""
    assert [one["label"] for one in shown] == [one["label"] for one in expected]
    for key, within in (("score", 1e-5), ("box", 0.02)):
        for one, other in zip(shown, expected, strict=True):
            assert one[key] == pytest.approx(other[key], abs=within)


def wait_until(true: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.005)


class Running(NamedTuple):
    port: int
    service: Service
    ended: Callable[[], bool]


@contextmanager
def running(load: Callable[[], Any], **settings: Any) -> Generator[Running]:
    """A server in a thread of this process."""
    service = Service(Settings("weights", **settings), Metrics(bytearray(8 * WIDTH)), load=load)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=run_server, args=(service, listener))
        thread.start()
        try:
            wait_until(lambda: service.batcher.detector is not None)
            yield Running(port, service, lambda: not thread.is_alive())
        finally:
            service.drain()
            thread.join(30)
            assert not thread.is_alive()


class Process(NamedTuple):
    popen: subprocess.Popen[bytes]
    port: int
    log: Path


@contextmanager
def process(weights: Path, folder: Path, *flags: str, **environment: str) -> Generator[Process]:
    """`triscale serve` in a process of its own, ready."""
    log = folder / "log.txt"
    words = [sys.executable, "-m", "triscale", "serve", str(weights), "--port", "0", *flags]
    with log.open("wb") as file:
        popen = subprocess.Popen(words, stderr=file, env={**os.environ, **environment})
    try:
        wait_until(lambda: "ready" in log.read_text() or popen.poll() is not None, seconds=120)
        found = re.search(r"http://[\d.]+:(\d+)", log.read_text())
        assert found, log.read_text()
        yield Process(popen, int(found[1]), log)
    finally:
        popen.kill()
        popen.wait()
