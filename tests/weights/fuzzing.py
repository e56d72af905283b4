"""What the fuzz tests of the readers share."""

from __future__ import annotations

import contextlib
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from triscale.errors import UserError


def peak_memory(read: Callable[[Path], object], name: str, content: bytes) -> int:
    """The most bytes that reading a file of this name and content takes, or refusing it; any
    exception but UserError goes on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        tracemalloc.start()
        try:
            with contextlib.suppress(UserError):
                read(path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
