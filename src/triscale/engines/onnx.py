"""An exported ONNX file, run by onnxruntime on the CPU. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from triscale.detections import Detections
from triscale.engines.header import read_header, require_usable, unpacked
from triscale.errors import UserError
from triscale.pixels import Fit


class OnnxEngine:
    """An `Engine`."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        options: Any = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no class of their own in common
            first = str(error).splitlines()[0]
            raise UserError(f"{path}: onnxruntime can't read it ({first})") from error
        texts = self._session.get_modelmeta().custom_metadata_map
        self.header = read_header(texts, source=str(path))
        self.size = require_usable(self.header, source=str(path))
        self.classes = self.header.classes
        self.fit: Fit = self.header.fit
        self.recipe = self.header.recipe
        self.name = f"onnxruntime {onnxruntime.__version__}, {self.header.precision}, CPU"

    def __call__(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> list[Detections]:
        """See `Engine`."""
        return unpacked(self._session.run(None, {"images": images, "sizes": sizes}))
