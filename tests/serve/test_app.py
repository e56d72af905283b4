"""Real requests on this machine: answers equal the detector's, and refusals say why."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.clients import (
    JPEG,
    Fake,
    Running,
    ask,
    assert_close,
    detect,
    detect_json,
    picture,
    running,
    wait_until,
)
from tests.serve.test_metrics import parse
from triscale.data.pictures import decode_picture
from triscale.predict import Detector
from triscale.serve.openapi import describe
from triscale.serve.settings import Settings


@pytest.fixture(scope="module")
def real(random_weights: Path) -> Iterator[Running]:
    """A server with a real network."""
    with running(lambda: Detector(random_weights, device="cpu"), queue=8) as server:
        yield server


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A server that takes little of everything, for who knows the token."""
    settings = {"queue": 3, "max_bytes": 20_000, "max_pixels": 2000, "timeout": 1.0}
    with running(Fake, token="geheim", **settings) as server:
        yield server


ALLOWED = {"Authorization": "Bearer geheim"}


def form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """A form's body and Content-Type."""
    parts = [
        f'--limit\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode()
        + data
        for name, data in files
    ]
    return b"\r\n".join([*parts, b"--limit--"]), "multipart/form-data; boundary=limit"


def test_results_are_the_detectors(real: Running, random_weights: Path) -> None:
    files = [picture(60, 80), picture(90, 50, suffix=".png", seed=1), picture(33, 200, seed=2)]
    detector = Detector(random_weights, device="cpu")
    alone = [detector(decode_picture(data, "a")) for data in files]
    assert all(len(found) == 100 for found in alone)

    raw = detect(real.port, files[0], query="?score=0").json()
    assert raw["images"] == [
        {"name": None, "width": 80, "height": 60, "detections": alone[0].to_dicts()}
    ]
    names = [f"{i}.x" for i in range(3)]
    body, kind = form(*zip(names, files, strict=True))
    several = detect(real.port, body, query="?score=0", kind=kind).json()
    from_json = detect_json(real.port, files, query="?score=0").json()
    assert [image["name"] for image in several["images"]] == names
    for answer in (several, from_json):
        assert [(i["width"], i["height"]) for i in answer["images"]] == [
            (80, 60),
            (50, 90),
            (200, 33),
        ]
        for image, found in zip(answer["images"], alone, strict=True):
            assert_close(image["detections"], found.to_dicts())


@pytest.mark.parametrize("query", ["?score=0.4", "?labels=square", "?score=0.3&labels=disc,square"])
def test_options(query: str, real: Running, random_weights: Path) -> None:
    found = Detector(random_weights, device="cpu")(decode_picture(picture(60, 80), "a"))
    score = 0.4 if "0.4" in query else 0.3
    labels = ["square"] if query == "?labels=square" else None
    expected = found.filter(score, labels=labels).to_dicts()
    assert expected
    assert (
        detect(real.port, picture(60, 80), query=query).json()["images"][0]["detections"]
        == expected
    )


@pytest.mark.parametrize(
    ("path", "method", "status", "text"),
    [
        ("/detect", "GET", 405, "doesn't take GET"),
        ("/", "POST", 405, "doesn't take POST"),
        ("/none", "GET", 404, "nothing at this path"),
        ("/page.py", "GET", 404, "nothing at this path"),
        ("/../server.py", "GET", 404, "nothing at this path"),
        ("/detect/", "POST", 404, "nothing at this path"),
    ],
)
def test_wrong_paths(path: str, method: str, status: int, text: str, real: Running) -> None:
    answer = ask(real.port, path, b"" if method == "POST" else None, method=method)
    assert (answer.status, list(answer.json())) == (status, ["error"])
    assert text in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("?score=x", "score: expected a number from 0 to 1, got 'x'"),
        ("?score=nan", "got 'nan'"),
        ("?score=", "got ''"),
        ("?score=-0.1", "got '-0.1'"),
        ("?treshold=1", "unknown option 'treshold'; known are score, labels"),
        ("?labels=sqare", "no class is named 'sqare'; did you mean 'square'?"),
        ("?labels=" + "x" * 1000, "no class is named 'xxx"),
    ],
)
def test_wrong_options(query: str, text: str, real: Running) -> None:
    answer = detect(real.port, picture(), query=query)
    assert answer.status == 422
    assert text in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"", JPEG, 422, "picture 1: the file is empty"),
        (b"no picture", JPEG, 422, "picture 1: not a picture"),
        (picture()[:-60], JPEG, 422, "picture 1: the JPEG is cut short"),
        (picture(), {"Content-Type": "text/html"}, 415, "isn't understood"),
        (picture(), {**JPEG, "Content-Encoding": "gzip"}, 415, "compressed"),
        (bytes(20_001), JPEG, 413, "at most 20,000 bytes"),
        (picture(41, 50, suffix=".png"), JPEG, 413, "picture 1: 50x41 pixels; expected at most"),
        (b'{"images": 1}', {"Content-Type": "application/json"}, 422, "expected JSON like"),
    ],
)
def test_refusals(
    body: bytes, headers: dict[str, str], status: int, text: str, small: Running
) -> None:
    answer = ask(small.port, "/detect", body, **headers, **ALLOWED)
    assert (answer.status, list(answer.json())) == (status, ["error"])
    assert text in answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"


def test_a_length_that_is_not_told(small: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield bytes(1000)

    answer = ask(small.port, "/detect", chunks(), **JPEG, **ALLOWED)  # type: ignore[arg-type]
    assert answer.status == 413


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer x", "Basic geheim", "geheim", "Bearer gehëim"]
)
@pytest.mark.parametrize("path", ["/detect", "/model", "/metrics"])
def test_the_token(path: str, given: str, small: Running) -> None:
    body = picture() if path == "/detect" else None
    answer = ask(small.port, path, body, Authorization=given, **JPEG)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert ask(small.port, path, body, **JPEG, **ALLOWED).status == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/openapi.json", "/page.js"])
def test_open_to_all(path: str, small: Running) -> None:
    answer = ask(small.port, path)
    assert answer.status == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers
    if answer.headers["content-type"].startswith("text/html"):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert not re.search(rb"""(?:src|href)=["'](?!data:|#|page\.|docs)""", answer.body)


def test_a_full_queue() -> None:
    detector = Fake()
    with running(lambda: detector, queue=2) as server:
        detector.gate.clear()
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(detect(server.port, picture()).status))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.service.batcher.waiting == 2)
        refused = detect(server.port, picture())
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "queue is full (2 pictures)" in refused.json()["error"]
        assert parse(ask(server.port, "/metrics").body.decode())["triscale_queue_pictures"] == 2
        detector.gate.set()
        for thread in threads:
            thread.join(30)
        assert answers == [200, 200]
        body, kind = form(*[("a", picture())] * 3)
        assert detect(server.port, body, kind=kind).status == 422  # it could never be let in


def test_too_slow() -> None:
    detector = Fake()
    with running(lambda: detector, timeout=0.5) as server:
        detector.gate.clear()
        late = detect(server.port, picture())
        assert (late.status, late.json()["error"]) == (504, "no result within 0.5 seconds")
        detector.gate.set()
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.settimeout(10)
            slow.sendall(b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
            assert slow.recv(12) == b"HTTP/1.1 408"
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.settimeout(10)
            slow.sendall(b"POST /det")
            with pytest.raises(ConnectionResetError):  # or the end, where the system says so
                raise ConnectionResetError if slow.recv(1) == b"" else AssertionError
        wait_until(lambda: not server.service.in_flight)
        assert detect(server.port, picture()).status == 200


def test_held_bytes_are_bounded() -> None:
    """Eight bodies of the largest size; what is given up doesn't count any more."""
    head = b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n"
    with running(Fake, max_bytes=10_000) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
        for connection in slow:
            connection.sendall(head + bytes(9998))
        wait_until(lambda: server.service.held._bytes == 8 * 9998)
        answer = detect(server.port, picture(60, 60))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        for connection in slow:
            connection.close()
        wait_until(lambda: server.service.held._bytes == 0)
        assert detect(server.port, picture(60, 60)).status == 200


def test_drain() -> None:
    """What is inside is finished; what comes later is told to go away; then the server ends."""
    detector = Fake()
    with running(lambda: detector) as server:
        detector.gate.clear()
        answers: list[int] = []
        thread = threading.Thread(
            target=lambda: answers.append(detect(server.port, picture()).status)
        )
        thread.start()
        wait_until(lambda: bool(detector.batches))
        assert ask(server.port, "/healthz").status == 200
        server.service.drain()
        assert ask(server.port, "/healthz").status == 503
        assert detect(server.port, picture()).json()["error"] == "the server is shutting down"
        time.sleep(0.3)
        assert not server.ended()
        detector.gate.set()
        thread.join(30)
        assert answers == [200]
        wait_until(server.ended, seconds=5)  # it waits for nothing


def test_a_mistake_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with running(Fake) as server:
        answer = detect(server.port, picture(13, 13))
        assert (answer.status, list(answer.json())) == (500, ["error"])
        assert b"thirteen" not in answer.body
        assert "RuntimeError: thirteen" in capfd.readouterr().err
        assert detect(server.port, picture()).status == 200


def test_log_and_metrics(capfd: pytest.CaptureFixture[str]) -> None:
    with running(Fake) as server:
        detect(server.port, picture(), query="?score=0.1")
        ask(server.port, "/a%0Ab")
        figures = parse(ask(server.port, "/metrics").body.decode())
        assert figures['triscale_requests_total{path="/detect",status="200"}'] == 1
        assert figures['triscale_requests_total{path="other",status="404"}'] == 1
        assert figures["triscale_batch_pictures_sum"] == 1
        assert figures["triscale_ready_workers"] == 1
    lines = capfd.readouterr().err.splitlines()
    shown = [re.sub(r"^[\d-]+ [\d:]+ |\d+ ms$", "", line) for line in lines]
    assert "ready" in shown
    assert [line for line in shown if line != "ready"][-4:] == [
        "127.0.0.1 POST /detect 200 ",
        "127.0.0.1 GET /a%0Ab 404 ",
        "127.0.0.1 GET /metrics 200 ",
        "ended",
    ]


def references(value: Any) -> Iterator[str]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in inside:
        yield from references(child)
    if isinstance(value, dict) and "$ref" in value:
        yield value["$ref"]


@pytest.mark.parametrize("token", [None, "x"])
def test_openapi(token: str | None, real: Running) -> None:
    """References lead somewhere, and what is described is what is answered."""
    description = describe(Settings("w", token=token, queue=8))
    for reference in references(description):
        place = description
        for word in reference.removeprefix("#/").split("/"):
            place = place[word]
    operations = [
        operation for path in description["paths"].values() for operation in path.values()
    ]
    secured = [operation["operationId"] for operation in operations if "security" in operation]
    assert secured == ([] if token is None else ["detect", "model", "metrics"])
    assert ("401" in operations[0]["responses"]) == (token is not None)
    if token is None:
        assert ask(real.port, "/openapi.json").json() == description
        schemas = description["components"]["schemas"]
        answer = detect(real.port, picture(60, 60)).json()
        assert set(answer) == set(schemas["Result"]["properties"])
        assert set(answer["images"][0]) == set(schemas["Image"]["properties"])
        assert set(answer["images"][0]["detections"][0]) == set(schemas["Detection"]["properties"])
        model = ask(real.port, "/model").json()
        assert model == {
            "name": "weights",
            "classes": ["disc", "square"],
            "colours": ["#e69f00", "#56b4e9"],  # Okabe and Ito's orange and sky blue
            "score_threshold": 0.3,
        }
        assert set(model) == set(schemas["Model"]["properties"])
