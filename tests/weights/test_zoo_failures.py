"""Downloads that can't succeed: each ends with one line, and with nothing that isn't published."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.weights.file_server import (
    CONTENT,
    NAME,
    PATH,
    SHA1,
    STEM,
    ZIP,
    Answer,
    Handler,
    Recorder,
    Server,
    cut,
    fetch,
    names,
    ranged,
    status,
    whole,
    zipped,
)
from triscale.errors import UserError
from triscale.weights import zoo


def damaged(offset: int) -> bytes:
    """The zip with one byte changed."""
    return ZIP[:offset] + bytes([ZIP[offset] ^ 0xFF]) + ZIP[offset + 1 :]


def declaring(size: int) -> bytes:
    """A zip whose member says that it has `size` bytes, in both of its headers."""
    told, lie = struct.pack("<I", len(CONTENT)), struct.pack("<I", size)
    return ZIP.replace(told, lie)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "expected a whole zip, found none: File is not a zip file"),
        (b"<html>Welcome to the hotel</html>", "expected a whole zip, found none: File is not"),
        (ZIP[:200_000], "expected a whole zip, found none: File is not a zip file"),
        (
            zipped(name="../evil.params"),
            rf"expected a zip with {STEM}.params, found ../evil.params",
        ),
        (zipped(name=f"../{STEM}.params"), rf"expected a zip with {STEM}.params, found ../{STEM}"),
        (
            b"PK\5\6" + bytes(18),
            f"expected a zip with {STEM}.params, found nothing",
        ),
        (zipped(b"wrong"), rf"with sha1 {SHA1}, found {hashlib.sha1(b'wrong').hexdigest()}"),
        (damaged(150_000), "expected a whole zip, found none: "),
        (declaring(1 << 31), "expected at most 1073741824 bytes, found 2147483648"),
        (declaring(1000), "expected a whole zip, found none: Bad CRC-32"),  # cut off there
        (zipped(method=zipfile.ZIP_LZMA), "unknown compression 14"),
    ],
)
def test_wrong_contents(body: bytes, message: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch(server, tmp_path / "cache", whole(body))
    text = str(caught.value)
    assert text.startswith(f"{server.mirror}gluon/models/{STEM}.zip: ")
    assert "\n" not in text
    assert text.count("try again later") == 1
    assert len(server.asked) == 1, "it came in one piece: the next would be the same"
    assert names(tmp_path / "cache") == set(), "the next try starts afresh"
    assert names(tmp_path) == {"cache"}


def test_wrong_pieces_are_fetched_again_just_once(server: Server, tmp_path: Path) -> None:
    wrong = zipped(bytes(300_000) + CONTENT)
    (tmp_path / f"{STEM}.zip.part").write_bytes(wrong[:1000])
    with pytest.raises(UserError, match=f"expected {STEM}.params with sha1 {SHA1}, found"):
        fetch(server, tmp_path, ranged(wrong))
    assert ["Range" in headers for _, headers in server.asked] == [True, False]
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("answer", "message", "requests"),
    [
        (status(404), "HTTP Error 404: Not Found; try again later", 1),
        (status(403), "HTTP Error 403: Forbidden; ", 1),
        (status(416), "HTTP Error 416: ", 1),
        (status(503), "HTTP Error 503: .*, at the last of 3 attempts", 3),
        (status(302, Location="file:///etc/passwd"), "HTTP Error 302: .* is not allowed", 1),
        (status(302, Location="ftp://127.0.0.1/a"), "unknown url type: ftp", 1),
        (status(302, Location=PATH), "HTTP Error 302: .* infinite loop", 5),
        (cut(0), f"ended after 0 bytes of {len(ZIP)}, at the last of 3", 3),
        (
            lambda handler: handler.reply(200, length=2 << 30),
            "at most 1073741824 bytes, found 21",
            1,
        ),
        (lambda handler: handler.wfile.write(b"\x1b]0;boo\x07\r\n\r\n"), "boo", 3),
        (lambda handler: None, "closed connection without response", 3),
    ],
)
def test_servers_that_fail(
    answer: Answer, message: str, requests: int, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch(server, tmp_path, answer)
    assert str(caught.value).isprintable()
    assert f"{server.mirror}gluon/models/{STEM}.zip: " in str(caught.value)
    assert f"--mirror URL, or use the file {STEM}.params" in str(caught.value)
    assert len(server.asked) == requests


@pytest.mark.usefixtures("small_zoo")
def test_a_refused_connection(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        mirror = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^{mirror}{PATH}: Connection refused; try"):
            zoo.download(NAME, narrator=Recorder(), mirror=mirror, folder=tmp_path)


@pytest.mark.usefixtures("small_zoo")
def test_an_unknown_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=rf"^{zoo.REPOSITORY}gluon/.*: Name or service not known;"):
        zoo.download(NAME, narrator=Recorder(), folder=tmp_path)


@pytest.mark.parametrize("count", [None, 0, 1000])
def test_a_stalled_server(
    count: int | None, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "TIMEOUT", 0.2)
    over = threading.Event()

    def stall(handler: Handler) -> None:
        if count is not None:
            cut(count)(handler)
        over.wait(10)

    began = time.monotonic()
    with pytest.raises(UserError, match=r"nothing came for 0.2 s.*, at the last of 3"):
        fetch(server, tmp_path, stall)
    over.set()
    assert 0.6 <= time.monotonic() - began < 5
    left = tmp_path / f"{STEM}.zip.part"
    assert (left.stat().st_size if left.exists() else None) == count


def test_a_server_that_never_ends(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a length the bound counts; with one, the file ends there."""
    monkeypatch.setattr(zoo, "MAX_BYTES", len(ZIP))
    with pytest.raises(UserError, match=f"expected at most {len(ZIP)} bytes, found more"):
        fetch(server, tmp_path, lambda handler: handler.reply(200, ZIP * 2, length=None))
    assert names(tmp_path) == set()
    fetch(server, tmp_path, lambda handler: handler.reply(200, ZIP * 2, length=len(ZIP)))


def test_more_than_announced(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{STEM}.zip.part").write_bytes(ZIP[:1000])
    told = f"bytes 1000-1999/{len(ZIP) - 1}"
    with pytest.raises(UserError, match=f"expected at most {len(ZIP) - 1} bytes, found more"):
        fetch(server, tmp_path, lambda h: h.reply(206, ZIP[1000:], Content_Range=told))
    assert names(tmp_path) == set()


@pytest.mark.parametrize("mirror", ["http://a b/", "http://é.invalid/é"])
@pytest.mark.usefixtures("small_zoo")
def test_addresses_that_cannot_be_asked(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="; try again later, name a copy with --mirror URL"):
        zoo.download(NAME, narrator=Recorder(), mirror=mirror, folder=tmp_path)


@pytest.mark.usefixtures("small_zoo")
def test_passwords_are_not_printed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected an address without") as caught:
        zoo.download(NAME, narrator=Recorder(), mirror="http://me:secret@host/", folder=tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_zips(seed: int, tmp_path: Path) -> None:
    """Any damage ends in the one kind of error, or does none to the content."""
    generator = np.random.default_rng(seed)
    small = b"weights" * 10
    body = zipped(small)
    part, target = tmp_path / "a.part", tmp_path / f"{STEM}.params"
    refused = 0
    for _ in range(200):
        data = np.frombuffer(body, np.uint8).copy()
        where = generator.integers(len(data), size=generator.integers(1, 4))
        data[where] = generator.integers(256, size=len(where))
        part.write_bytes(data[: generator.integers(1, len(data))] if refused % 5 == 4 else data)
        try:
            zoo._unpack("http://a/b.zip", part, target=target, sha1=hashlib.sha1(small).hexdigest())
        except UserError:
            refused += 1
            assert not target.exists()
        else:
            assert target.read_bytes() == small
            target.unlink()
    assert refused > 50
