"""An exported ONNX file, run by onnxruntime. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from triscale.backends.header import read_header
from triscale.errors import UserError


class OnnxModel:
    """`model(images, sizes)`: pictures (N, H, W, 3) uint8 as the header says, and the heights and
    widths (N, 2) that they had before -> boxes (N, K, 4), scores, labels (N, K), count (N,)."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common class of their own
            first = str(error).splitlines()[0]
            raise UserError(f"{path}: onnxruntime can't read it ({first})") from error
        texts = self._session.get_modelmeta().custom_metadata_map
        self.header = read_header(texts, source=str(path))

    def __call__(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> list[Any]:
        """See the class."""
        inputs = {"images": images} if self.header.resize else {"images": images, "sizes": sizes}
        return self._session.run(None, inputs)
