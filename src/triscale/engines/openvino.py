"""An exported network in OpenVINO's form, or an ONNX file, run by OpenVINO on the CPU. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from triscale.detections import Detections
from triscale.engines.header import read_header, run_whole
from triscale.engines.machine import num_threads
from triscale.engines.telemetry import refuse_telemetry
from triscale.errors import UserError
from triscale.packages import require_packages
from triscale.pixels import Fit

SECTION = "framework"  # of rt_info: where OpenVINO keeps the metadata of an ONNX file
HINTS = {"fp32": "f32", "bf16": "bf16"}
NAMES = {"f32": "fp32", "f16": "fp16"}  # of what it chose


class OpenVinoEngine:
    """An `Engine`; `precision` is what the network computes in, auto: what OpenVINO prefers."""

    def __init__(
        self,
        path: Path,
        *,
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
        threads: int | None = None,
    ) -> None:
        require_packages("openvino", purpose=str(path))
        refuse_telemetry()
        import openvino

        core: Any = openvino.Core()
        file = xml_of(path) if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"{path}: expected a folder that triscale export wrote, no {file.name}")
        # The default on processors that have it is bf16, which moves scores by hundredths.
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or num_threads(),
            **({"INFERENCE_PRECISION_HINT": HINTS[precision]} if precision in HINTS else {}),
        }
        try:
            model = read_folded(core, file)
            known: Any = model.get_rt_info([SECTION]).value if model.has_rt_info([SECTION]) else {}
            texts = {name: str(text) for name, text in dict(known).items()}
            self.header = read_header(texts, source=str(path))
            self._model: Any = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            raise UserError(f"{path}: OpenVINO can't read it ({lines[-1].strip():.200})") from error
        self.outputs: list[str] = [output.any_name for output in model.outputs]
        self.size, self.classes = self.header.size, self.header.classes
        self.fit: Fit = self.header.fit
        self.recipe = self.header.recipe
        chosen = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        kind = "int8" if self.header.precision == "int8" else NAMES.get(chosen, chosen)
        self.name = f"OpenVINO {openvino.__version__.split('-')[0]}, {kind}, CPU"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Run`."""
        found = self._model(dict(inputs))
        return {name: found[name].copy() for name in self.outputs}  # they live in its memory

    def __call__(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> list[Detections]:
        """See `Engine`."""
        return run_whole(self.run, self.header, images, sizes)


def read_folded(core: Any, file: Path) -> Any:
    """A network with its constants computed.

    Without that, in 8 bits OpenVINO 2026.4 leaves out the bias of a convolution (of the first one
    in MobileNets with decoding) whose shape it is still computing when it fuses the two.
    """
    refuse_telemetry()
    from openvino.passes import ConstantFolding, Manager

    model: Any = core.read_model(file)
    passes: Any = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    return model


def xml_of(folder: Path) -> Path:
    """The network's file in an exported folder; the weights lie beside it."""
    return folder / "detector.xml"
