"""OpenVINO's form: a folder with the network (.xml), its weights (.bin) and what it says of itself.

Read from the ONNX file, so that both are one network.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from triscale.engines.header import Header
from triscale.engines.openvino import SECTION, xml_of
from triscale.engines.telemetry import refuse_telemetry
from triscale.errors import UserError


def write_openvino(folder: Path, onnx: Path, *, header: Header, half: bool) -> None:
    """Write the network of an ONNX file as `folder`, which must not be there."""
    refuse_telemetry()
    import openvino

    model: Any = openvino.Core().read_model(onnx)
    for name, text in header.texts().items():
        model.set_rt_info(text, [SECTION, name])
    if folder.exists():
        raise UserError(f"{folder}: is there already")
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        place = Path(temporary) / folder.name
        place.mkdir()
        openvino.save_model(model, xml_of(place), compress_to_fp16=half)
        shutil.move(place, folder)
