"""Processes: their start, their end, and 500 hostile requests."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutations import damaged
from tests.serve.clients import (
    JPEG,
    Process,
    ask,
    assert_close,
    detect,
    detect_json,
    picture,
    process,
    wait_until,
)
from tests.serve.test_metrics import parse
from triscale.cli import main
from triscale.data.pictures import decode_picture
from triscale.engines.onnx import OnnxEngine
from triscale.export.openvino import write_openvino
from triscale.predict import Detector

INPUTS = 500
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def statm(pid: int) -> int:
    """Memory of a process in MB (proc(5): the second number of statm, in pages)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") >> 20


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "no such weights file or run folder"),
        (["--workers", "2"], "no such weights file or run folder"),
        (["--host", "192.0.2.1"], "192.0.2.1:0: can't listen"),  # of RFC 5737: nobody's
        (["--host", "a" * 300], "can't listen (not a name of a host)"),
        (["--port", "70000"], "--port: expected 0 to 65535, got 70000"),
        (["--queue", "0"], "--queue: expected at least 1, got 0"),
        (["--max-bytes", "-1"], "--max-bytes: expected at least 1, got -1"),
        (["--window", "nan"], "--window: expected 0 to 1000 milliseconds, got nan"),
        (["--timeout", "0"], "--timeout: expected seconds above 0, got 0.0"),
        (["--score", "2"], "--score: expected between 0 and 1, got 2.0"),
        (["--token-file", "none"], "none: can't be read"),
        (["--token-file", "two"], "two: expected one line, the token, found 2 lines"),
        (["--token-file", "empty"], "the token: expected at least one character"),
        (["--token-file", "odd"], "the token: expected printable ASCII"),
    ],
)
def test_a_start_that_fails(
    flags: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("two", "a\nb\n"), ("empty", "\n"), ("odd", "é")):
        Path(name).write_text(content)
    assert main(["serve", "none.weights", "--port", "0", *flags]) == 2
    assert text in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "none.weights", "--port", str(port)]) == 2
        assert f"127.0.0.1:{port}: can't listen (" in capsys.readouterr().err


def test_a_warning_where_all_can_reach_it(capsys: pytest.CaptureFixture[str]) -> None:
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        assert main(["serve", "none.weights", "--port", "0", "--host", host]) == 2
        assert ("who can reach 0.0.0.0:" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end(number: int, random_weights: Path, tmp_path: Path) -> None:
    """A request that is on its way when the signal comes is served."""
    with process(random_weights, tmp_path, TRISCALE_TOKEN="geheim") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        body = picture(200, 200)
        connection.putrequest("POST", "/detect")
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Authorization", "Bearer geheim")
        connection.endheaders(body[:100])
        time.sleep(0.3)
        server.popen.send_signal(number)
        wait_until(lambda: ask(server.port, "/healthz").status == 503)
        assert server.popen.poll() is None
        connection.send(body[100:])
        assert connection.getresponse().status == 200
        connection.close()
        assert server.popen.wait(10) == 0
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("form", ["small.onnx", "small_openvino"])
def test_an_exported_network(form: str, onnx_file: Path, tmp_path: Path) -> None:
    """It finds in several pictures what torch finds with the weights it was made from."""
    weights = tmp_path / form
    if form.endswith(".onnx"):
        weights = onnx_file
    else:
        write_openvino(weights, onnx_file, header=OnnxEngine(onnx_file).header, half=False)
    files = [picture(60, 80), picture(90, 50, suffix=".png", seed=1), picture(33, 200, seed=2)]
    detector = Detector(onnx_file.with_suffix(".safetensors"), device="cpu")
    expected = [detector(decode_picture(data, "a")).filter(labels="dog") for data in files]
    assert all(expected)
    with process(weights, tmp_path) as server:
        assert ask(server.port, "/model").json()["name"] == form
        answer = detect_json(server.port, files, query="?score=0&labels=dog").json()
        for image, found in zip(answer["images"], expected, strict=True):
            assert_close(image["detections"], found.to_dicts())
        server.popen.terminate()
        assert server.popen.wait(10) == 0


def test_the_end_does_not_wait_for_ever(random_weights: Path, tmp_path: Path) -> None:
    with (
        process(random_weights, tmp_path, "--timeout", "1.5") as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        slow.sendall(b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
        time.sleep(0.3)
        server.popen.terminate()
        assert server.popen.wait(10) == 0
    assert "Traceback" not in server.log.read_text()


def test_workers(random_weights: Path, tmp_path: Path) -> None:
    """They share the port and the figures; one that dies is replaced; all end together."""
    with process(random_weights, tmp_path, "--workers", "2") as server:
        wait_until(lambda: server.log.read_text().count("is ready") == 2, seconds=120)

        def ready() -> float:
            figures = parse(ask(server.port, "/metrics").body.decode())
            return figures["triscale_ready_workers"]

        def answered() -> float:
            figures = parse(ask(server.port, "/metrics").body.decode())
            return figures.get('triscale_requests_total{path="/detect",status="200"}', 0)

        assert ready() == 2
        answers = [detect(server.port, picture()) for _ in range(4)]
        assert [answer.status for answer in answers] == [200] * 4
        assert len({json.dumps(answer.json()["images"]) for answer in answers}) == 1
        wait_until(lambda: answered() == 4)  # counted once the answer is out
        first = int(server.log.read_text().split("worker ")[1].split()[0])
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "another one takes its place" in server.log.read_text())
        # the one that is left answers while the new one loads its network
        assert [detect(server.port, picture()).status for _ in range(4)] == [200] * 4
        assert server.log.read_text().count("is ready") == 2
        wait_until(lambda: server.log.read_text().count("is ready") == 3, seconds=120)
        wait_until(lambda: ready() == 2)
        assert "a worker ended (-9); another one takes its place" in server.log.read_text()
        assert answered() == 8
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(30) == 0


def test_workers_end_with_their_parent(random_weights: Path, tmp_path: Path) -> None:
    with process(random_weights, tmp_path, "--workers", "2") as server:
        wait_until(lambda: server.log.read_text().count("is ready") == 2, seconds=120)
        server.popen.kill()
        server.popen.wait()

        def gone() -> bool:
            try:
                socket.create_connection(("127.0.0.1", server.port)).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(gone)


# Hostile requests: each a function of the generator, (head, body, how slowly it is sent).


def png(height: int, width: int, pixels: bytes = b"") -> bytes:
    """A PNG that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def hostile(rng: Random) -> tuple[dict[str, str], bytes]:
    """Headers and a body."""
    suffix = rng.choice((".jpg", ".png", ".webp", ".bmp", ".tiff"))
    data = picture(rng.randint(1, 80), rng.randint(1, 80), suffix=suffix)
    kind = rng.choice(("cut", "bytes", "bomb", "wrong", "form", "base64", "json", "large"))
    if kind == "cut":
        return JPEG, data[: rng.randrange(len(data))]
    if kind == "bytes":
        return JPEG, damaged(data, suffix, rng)
    if kind == "bomb":
        bombs = (
            png(rng.choice((7000, 60_000, 2**31 - 1)), rng.choice((7200, 60_000, 2**31 - 1))),
            png(6000, 8000, bytes(3_000_000)),  # within the limit, and cut short
            data.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff"),
        )
        return JPEG, rng.choice(bombs)
    if kind == "wrong":
        wrong = rng.choice(
            ("text/html", "image/svg+xml", "multipart/mixed", "/", "é", "application/json")
        )
        return {"Content-Type": wrong}, rng.choice((data, b"<svg/>", b"GIF89a" + data, b""))
    if kind == "form":
        body = (
            b'--b\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n%s\r\n--b--'
            % data
        )
        body = rng.choice((damaged(body, ".txt", rng), body * 50, body[:-20], b"--b\r\n" * 9999))
        return {"Content-Type": f"multipart/form-data; boundary={rng.choice('bbbx-')}"}, body
    if kind == "base64":
        text = base64.b64encode(data).decode()
        text = rng.choice(
            (text[:-1], text + "=", text.lower(), "é" + text, "data:," + text, text * 3)
        )
        return {"Content-Type": "application/json"}, json.dumps({"images": [text]}).encode()
    if kind == "json":
        body = json.dumps({"images": [base64.b64encode(data).decode()]}).encode()
        deep = rng.choice((b"[", b'{"images":', b'{"images":["', b"9", b"[1,")) * 50_000
        return {"Content-Type": "application/json"}, rng.choice((damaged(body, ".json", rng), deep))
    return JPEG, bytes(rng.choice((2_000_000, 3_000_000)))


def send(port: int, rng: Random) -> int:
    """The status of one hostile request; 0 where the client hung up."""
    headers, body = hostile(rng)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = rng.choice((len(body),) * 8 + (len(body) + 9, -1, 2**70))
    if rng.random() < 0.05:
        lines += f"X: {'y' * rng.choice((20_000, 200_000))}\r\n"
    head = f"POST /detect?score={rng.choice(('0.1', '0', 'x'))} HTTP/1.1\r\nHost: a\r\n{lines}"
    if rng.random() < 0.1:
        body = b"".join(
            b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:9], body[9:]) if part
        )
        head += "Transfer-Encoding: chunked\r\n\r\n"
        body += rng.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"ffffffff\r\n", b"x\r\n"))
    else:
        head += f"Content-Length: {length}\r\n\r\n"
    message = head.encode("utf-8") + body
    if rng.random() < 0.05:
        message = damaged(message[:400], ".txt", rng) + message[400:]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(20)
        try:
            if rng.random() < 0.05:  # a client that sends little by little, and then nothing
                for byte in message[:40]:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.001)
            else:
                connection.sendall(message)
            if rng.random() < 0.1:
                return 0
            answer = b""
            while not answer.endswith(b"}"):
                part = connection.recv(65536)
                if not part:
                    break
                answer += part
        except ConnectionError:
            return 0
    if not answer:
        return 0
    status, text = int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]
    if status != 200:
        assert list(json.loads(text)) == ["error"], answer
    return status


@pytest.fixture(scope="module")
def target(random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    limits = ("--timeout", "1", "--max-bytes", "2500000", "--queue", "32")
    with process(random_weights, tmp_path_factory.mktemp("target"), *limits) as server:
        yield server


def test_hostile_requests(target: Process) -> None:
    """It stays alive, answers what it can, forgets all of it, and its memory stays as it is."""
    generators = [Random(seed) for seed in range(INPUTS)]
    statuses: list[int] = []

    def work(part: list[Random]) -> None:
        statuses.extend(send(target.port, rng) for rng in part)

    def volley(part: list[Random]) -> int:
        threads = [threading.Thread(target=work, args=(part[i::16],)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: detect(target.port, picture()).status == 200)
        return statm(target.popen.pid)

    after_some = volley(generators[: INPUTS // 2])
    after_all = volley(generators[INPUTS // 2 :])
    assert len(statuses) == INPUTS
    assert set(statuses) <= {0, 200, 400, 404, 405, 408, 413, 415, 422, 503, 504}, Counter(statuses)
    assert set(statuses) >= {0, 400, 413, 415, 422}, Counter(statuses)
    assert set(statuses) & {200, 504}, Counter(statuses)  # on a busy machine a second is little
    assert after_all - after_some < 60, f"from {after_some} to {after_all} MB"
    figures = parse(ask(target.port, "/metrics").body.decode())
    assert figures["triscale_queue_pictures"] == 0
    assert "Traceback" not in target.log.read_text()


def test_no_files_are_left_open(target: Process) -> None:
    def opened() -> int:
        return len(os.listdir(f"/proc/{target.popen.pid}/fd"))

    detect(target.port, picture())
    before = opened()
    connections = [socket.create_connection(("127.0.0.1", target.port)) for _ in range(50)]
    for number, connection in enumerate(connections):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"[: number + 1])
    wait_until(lambda: opened() > before)
    wait_until(lambda: opened() <= before, seconds=15)  # the server closes what doesn't go on
    for connection in connections:
        connection.close()
    assert ask(target.port, "/healthz").status == 200


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from triscale.cli import main; sys.exit(main(['serve', 'w']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert (
        "serve needs uvicorn, which isn't installed: pip install 'triscale[serve]'" in ended.stderr
    )
