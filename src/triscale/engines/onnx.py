"""An exported ONNX file, run by onnxruntime on the CPU. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triscale.detections import Detections
from triscale.engines.header import read_header, run_whole
from triscale.engines.machine import num_threads
from triscale.errors import UserError
from triscale.packages import require_packages
from triscale.pixels import Fit


class OnnxEngine:
    """An `Engine`."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        require_packages("onnxruntime", purpose=str(path))
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails, we say
        options.intra_op_num_threads = threads or num_threads()
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no class of their own in common
            first = f"{error}\n".splitlines()[0]
            raise UserError(f"{path}: onnxruntime can't read it ({first:.200})") from error
        texts = self._session.get_modelmeta().custom_metadata_map
        self.header = read_header(texts, source=str(path))
        self.outputs: list[str] = [output.name for output in self._session.get_outputs()]
        self.size, self.classes = self.header.size, self.header.classes
        self.fit: Fit = self.header.fit
        self.recipe = self.header.recipe
        self.name = f"onnxruntime {onnxruntime.__version__}, {self.header.precision}, CPU"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Run`."""
        return dict(zip(self.outputs, self._session.run(None, dict(inputs)), strict=True))

    def __call__(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> list[Detections]:
        """See `Engine`."""
        return run_whole(self.run, self.header, images, sizes)
