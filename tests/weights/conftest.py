"""Fixtures of the tests of downloads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.weights.file_server import NAME, SHA1, Handler, Server, ranged
from triscale.weights import zoo


@pytest.fixture
def small_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small file in the table, and no long waits."""
    monkeypatch.setattr(zoo, "ZOO", {NAME: SHA1, "other": "0" * 40})
    monkeypatch.setattr(zoo, "PAUSE", 0.0)
    monkeypatch.setattr(zoo, "TIMEOUT", 5.0)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(small_zoo: None) -> Iterator[Server]:
    """A server that has the file."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.answers, server.asked = [ranged()], []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
