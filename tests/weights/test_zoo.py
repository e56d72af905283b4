"""Fetching published weights, from a server of the standard library on this machine.

The oracle is the file itself: whatever the server does, the bytes are the published ones. The
published files aren't here; a small one takes their place in the table.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.weights.file_server import (
    CONTENT,
    NAME,
    PATH,
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
from triscale import __version__
from triscale.errors import UserError
from triscale.weights import zoo


def test_the_table_is_the_published_one(shared: Path) -> None:
    published = json.loads((shared / "gluoncv" / "zoo.json").read_text())
    assert published["models"] == zoo.ZOO
    assert published["repo"] == zoo.REPOSITORY


def test_download(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the cache, which is made; with what a bar needs; named to the server."""
    monkeypatch.setenv("TRISCALE_CACHE", str(tmp_path / "a" / "b"))
    narrator = Recorder()
    path = zoo.download(NAME, narrator=narrator, mirror=server.mirror.rstrip("/"))
    assert path == tmp_path / "a" / "b" / f"{STEM}.params"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == {path.name}
    ((asked, headers),) = server.asked
    assert asked == PATH
    assert headers["User-Agent"] == f"triscale/{__version__}"
    assert "Range" not in headers
    assert narrator.lines == [f"downloading {server.mirror.rstrip('/')}{PATH}"]
    assert narrator.bars == [(f"{STEM}.zip (MB)", 1, 0)]
    assert narrator.advanced == pytest.approx(len(ZIP) / 1e6)


def test_what_is_there_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    server.asked.clear()
    before = path.stat()
    assert fetch(server, tmp_path) == path
    assert server.asked == []
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_wrong_file_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{STEM}.params").write_bytes(b"other")
    narrator = Recorder()
    path = zoo.download(NAME, narrator=narrator, mirror=server.mirror, folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert "not the published file" in narrator.lines[0]
    assert hashlib.sha1(b"other").hexdigest() in narrator.lines[0]


def test_a_cut_connection_goes_on(server: Server, tmp_path: Path) -> None:
    narrator = Recorder()
    server.answers = [cut(123_456), ranged()]
    path = zoo.download(NAME, narrator=narrator, mirror=server.mirror, folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked[1][1]["Range"] == "bytes=123456-"
    assert narrator.advanced == pytest.approx(len(ZIP) / 1e6), "nothing came twice"
    assert f"ended after 123456 bytes of {len(ZIP)}; trying again" in narrator.lines[1]


def test_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"503: .*, at the last of 3 attempts \(what came is kept\)"
    ):
        fetch(server, tmp_path, cut(1000), status(503))
    assert len(server.asked) == 3
    assert names(tmp_path) == {f"{STEM}.zip.part"}
    server.asked.clear()
    assert fetch(server, tmp_path, ranged()).read_bytes() == CONTENT
    assert server.asked[0][1]["Range"] == "bytes=1000-"
    assert names(tmp_path) == {f"{STEM}.params"}


def misplaced(handler: Handler) -> None:
    """A range that wasn't asked for."""
    handler.reply(206, ZIP[5:], Content_Range=f"bytes 5-{len(ZIP) - 1}/{len(ZIP)}")


def in_parts(handler: Handler) -> None:
    """Ranges of at most 100,000 bytes, fewer than were asked for."""
    start = handler.start()
    body = ZIP[start : start + 100_000]
    last = start + len(body) - 1
    handler.reply(206, body, Content_Range=f"bytes {start}-{last}/{len(ZIP)}")


def chunked(handler: Handler) -> None:
    """No length, but chunks."""
    handler.protocol_version = "HTTP/1.1"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ZIP), ZIP)
    handler.reply(200, body, length=None, Transfer_Encoding="chunked", Connection="close")


@pytest.mark.parametrize(
    ("left", "answers", "requests"),
    [
        (b"", [ranged()], 1),
        (ZIP[:1000], [whole()], 1),  # no ranges known
        (ZIP, [ranged()], 1),  # 416: it was killed before the zip was read
        (ZIP + b"more", [ranged()], 1),  # 416; what follows a zip does no harm
        (b"x" * len(ZIP), [ranged()], 2),
        (zipped(bytes(500))[:100], [ranged()], 2),  # from another mirror
        (ZIP[:1000], [misplaced, whole()], 2),
        (ZIP[:1000], [in_parts], 3),
        (b"", [in_parts], 4),
        (b"", [status(500), status(503), ranged()], 3),
        (b"", [chunked], 1),
        (b"", [lambda handler: handler.reply(200, ZIP, length=None)], 1),
        (b"", [lambda handler: handler.reply(200, zipped(method=zipfile.ZIP_STORED))], 1),
    ],
)
def test_servers_and_leftovers(
    left: bytes,
    answers: list[Answer],
    requests: int,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zoo, "ATTEMPTS", 4)
    if left:
        (tmp_path / f"{STEM}.zip.part").write_bytes(left)
    assert fetch(server, tmp_path, *answers).read_bytes() == CONTENT
    assert len(server.asked) == requests
    assert names(tmp_path) == {f"{STEM}.params"}


def test_a_redirect_is_followed_and_keeps_the_range(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{STEM}.zip.part").write_bytes(ZIP[:1000])
    fetch(server, tmp_path, status(302, Location="/elsewhere.zip"), ranged())
    assert server.asked[1][0] == "/elsewhere.zip"
    assert server.asked[1][1]["Range"] == "bytes=1000-"


def test_a_proxy_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.mirror)
    zoo.download(NAME, narrator=Recorder(), mirror="http://mirror.invalid/a", folder=tmp_path)
    assert server.asked[0][0] == f"http://mirror.invalid/a{PATH}"


@pytest.mark.parametrize(
    "mirror",
    ["", "file:///etc/passwd", "ftp://a/", "/etc/passwd", "example.org/a", "http://", "http://[a/"],
)
@pytest.mark.usefixtures("small_zoo")
def test_only_http_mirrors(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mirror: expected an address with http:// or https://"):
        zoo.download(NAME, narrator=Recorder(), mirror=mirror, folder=tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("small_zoo")
def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"'yolo3_darknet_voc'; did you mean '{NAME}'"):
        zoo.download("yolo3_darknet_voc", narrator=Recorder(), folder=tmp_path)


def test_two_at_once(server: Server, tmp_path: Path) -> None:
    """Another process has the folder: nothing is touched, nothing is asked for."""
    part = tmp_path / f"{STEM}.zip.part"
    part.write_bytes(ZIP[:1000])
    other = (
        "import sys; from pathlib import Path; from triscale.files import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", other, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=f"{tmp_path}: another process is at work"):
            fetch(server, tmp_path)
        assert process.stdin
        process.stdin.close()
    assert server.asked == []
    assert part.read_bytes() == ZIP[:1000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be used for downloads \(Not a directory\)"):
        fetch(server, tmp_path / "file" / "inside")
    assert server.asked == []
