"""A web server on this machine for the tests of downloads: what it has, and how it misbehaves."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from triscale.log import Narrator
from triscale.weights import zoo

NAME = "yolo3_darknet53_voc"
CONTENT = np.random.default_rng(0).bytes(300_000)  # what deflate can't shorten
SHA1 = hashlib.sha1(CONTENT).hexdigest()
STEM = f"{NAME}-{SHA1[:8]}"
PATH = f"/gluon/models/{STEM}.zip"


def zipped(content: bytes = CONTENT, *, name: str = f"{STEM}.params", method: int = 8) -> bytes:
    """A zip with one member."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression=method) as archive:
        archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return stream.getvalue()


ZIP = zipped()


class Handler(BaseHTTPRequestHandler):
    """Answers the n-th request by the n-th function, and every later one by the last."""

    server: Server

    def do_GET(self) -> None:
        """Note the request and answer it."""
        asked = self.server.asked
        asked.append((self.path, dict(self.headers)))
        answers = self.server.answers
        answers[min(len(asked), len(answers)) - 1](self)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def reply(
        self, status: int, body: bytes = b"", *, length: int | None = -1, **headers: str
    ) -> None:
        """Send a whole answer; `length` is what Content-Length claims, None leaves it out."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def start(self) -> int:
        """First byte that is asked for."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found else 0


Answer = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    """The server of one test: what it will answer, what it was asked."""

    answers: list[Answer]
    asked: list[tuple[str, dict[str, str]]]

    @property
    def mirror(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


def whole(body: bytes = ZIP, **headers: str) -> Answer:
    """The file from the beginning, whatever range is asked for."""
    return lambda handler: handler.reply(200, body, **headers)


def ranged(body: bytes = ZIP) -> Answer:
    """The file, and ranges of it."""

    def answer(handler: Handler) -> None:
        start = handler.start()
        if not start:
            handler.reply(200, body)
        elif start < len(body):
            told = f"bytes {start}-{len(body) - 1}/{len(body)}"
            handler.reply(206, body[start:], Content_Range=told)
        else:
            handler.reply(416, Content_Range=f"bytes */{len(body)}")

    return answer


def cut(count: int, body: bytes = ZIP, **headers: str) -> Answer:
    """The first `count` bytes, with the length of all; then the connection closes."""
    return lambda handler: handler.reply(200, body[:count], length=len(body), **headers)


def status(code: int, **headers: str) -> Answer:
    """An answer without content."""
    return lambda handler: handler.reply(code, **headers)


class Recorder(Narrator):
    """What would be shown."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        self.lines: list[str] = []
        self.bars: list[tuple[str, int, int]] = []
        self.advanced = 0.0

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, what: str, total: int, *, done: int = 0) -> None:
        self.bars.append((what, total, done))

    def advance(self, note: str = "", *, what: str | None = None, amount: float = 1) -> None:
        self.advanced += amount


def fetch(server: Server, folder: Path, *answers: Answer) -> Path:
    """Download from a server that gives these answers."""
    server.answers = list(answers) or server.answers
    return zoo.download(NAME, narrator=Recorder(), mirror=server.mirror, folder=folder)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}
