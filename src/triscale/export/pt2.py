"""torch.export's archive (.pt2), for programs that have torch but not triscale."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triscale.engines.header import Header, Run
from triscale.export.graph import torch_suppress
from triscale.export.onnx import Form, graph_of, outputs_of, quietly
from triscale.files import write_atomically
from triscale.model.yolo import YOLOv3
from triscale.weights.contents import WeightsInfo

HEADER = "triscale.json"  # a file in the archive


def write_pt2(path: Path, model: YOLOv3, info: WeightsInfo, form: Form, *, header: Header) -> None:
    """Write `model` as such an archive, atomically."""
    graph, inputs, shapes = graph_of(model, info, form, suppress=torch_suppress)
    texts = {HEADER: json.dumps(header.texts())}
    buffer = io.BytesIO()
    with quietly(), torch.no_grad():
        program = torch.export.export(graph, (), kwargs=inputs, dynamic_shapes=shapes)
        program.example_inputs = None  # they would be pickled
        torch.export.save(program, buffer, extra_files=texts)
    write_atomically(path, buffer.getvalue())


def open_pt2(path: Path, form: Form) -> Run:
    """The function in an archive that was just written."""
    with quietly():
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            found = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        fields = (found,) if form.raw else found
        arrays = [np.asarray(field.detach().numpy()) for field in fields]
        return dict(zip(outputs_of(form), arrays, strict=True))

    return run
