"""OpenVINO's form: a folder with the network (.xml), its weights (.bin) and what it says of itself.

Read from the ONNX file, so that both are one network.
"""

from __future__ import annotations

from pathlib import Path

from triscale.engines.header import Header
from triscale.engines.openvino import SECTION, read_folded, xml_of
from triscale.engines.telemetry import refuse_telemetry


def write_openvino(folder: Path, onnx: Path, *, header: Header, half: bool) -> None:
    """Write the network of an ONNX file as a new `folder`; `half` halves its weights."""
    refuse_telemetry()
    import openvino

    model = read_folded(openvino.Core(), onnx)
    for name, text in header.texts().items():
        model.set_rt_info(text, [SECTION, name])
    folder.mkdir()
    openvino.save_model(model, xml_of(folder), compress_to_fp16=half)
