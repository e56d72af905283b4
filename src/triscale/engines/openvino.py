"""An exported network in OpenVINO's form, or an ONNX file, run by OpenVINO on the CPU. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from triscale.detections import Detections
from triscale.engines.header import Header, read_header, require_usable, unpacked
from triscale.engines.telemetry import refuse_telemetry
from triscale.errors import UserError
from triscale.pixels import Fit

SECTION = "triscale"  # of the file's rt_info


class OpenVinoEngine:
    """An `Engine`; `precision` is what the network computes in, auto: what OpenVINO prefers."""

    def __init__(
        self,
        path: Path,
        *,
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
        threads: int | None = None,
    ) -> None:
        refuse_telemetry()
        import openvino

        core: Any = openvino.Core()
        file = xml_of(path) if path.is_dir() else path
        try:
            model: Any = core.read_model(file)
            self.header = _header(model, file)
            self.size = require_usable(self.header, source=str(path))
            # The default on processors that have it is bf16, which moves scores by hundredths.
            hints = {"fp32": "f32", "bf16": "bf16"}
            config: dict[str, Any] = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
            }
            if precision in hints:
                config["INFERENCE_PRECISION_HINT"] = hints[precision]
            self._model: Any = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1]
            raise UserError(f"{file}: OpenVINO can't read it ({first})") from error
        self.classes = self.header.classes
        self.fit: Fit = self.header.fit
        self.recipe = self.header.recipe
        kind = self.header.precision if self.header.precision == "int8" else precision
        self.name = f"OpenVINO {openvino.__version__.split('-')[0]}, {kind}, CPU"

    def __call__(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> list[Detections]:
        """See `Engine`."""
        outputs = self._model({"images": images, "sizes": sizes})
        return unpacked([outputs[name].copy() for name in ("boxes", "scores", "labels", "count")])


def xml_of(folder: Path) -> Path:
    """The network's file in an exported folder; the weights lie beside it."""
    return folder / "detector.xml"


def _header(model: Any, path: Path) -> Header:
    """From an OpenVINO model, or from the ONNX file that it was read from."""
    if path.suffix == ".onnx":
        import onnxruntime

        session: Any = onnxruntime.InferenceSession(str(path))
        return read_header(session.get_modelmeta().custom_metadata_map, source=str(path))
    if not model.has_rt_info([SECTION]):
        return read_header({}, source=str(path))
    values = model.get_rt_info([SECTION]).value
    return read_header({name: str(v) for name, v in dict(values).items()}, source=str(path))
