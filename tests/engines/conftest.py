"""One small exported network for all tests of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exporting import write_onnx


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed: copy it."""
    return write_onnx(tmp_path_factory.mktemp("onnx"))
