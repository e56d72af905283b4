"""`triscale export`, top to bottom: weights in, a file out, kept only if it finds the same.

The file is written beside its place, run by the program that it is for, compared with the network
on real pictures, and then moved to where it was wanted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from triscale.data.index import Index
from triscale.data.open import Data, open_dataset
from triscale.data.options import DataConfig
from triscale.data.pictures import read_picture
from triscale.detections import Detections
from triscale.engines.header import Header, unpacked
from triscale.engines.onnx import OnnxEngine, open_session
from triscale.engines.openvino import OpenVinoEngine
from triscale.engines.pytorch import TorchEngine
from triscale.errors import UserError
from triscale.evaluation import EvalConfig, choose_metric, score
from triscale.export.int8 import quantise
from triscale.export.onnx import Form, header_of, write_onnx, write_pt2
from triscale.export.openvino import write_openvino
from triscale.export.parity import TOLERANCES, Parity, compare
from triscale.predict import Detector, find_weights, is_exported
from triscale.weights.formats import load_weights

PICTURES = 16  # that the two are compared on
CALIBRATION = 200  # pictures; more change nothing
Picture = NDArray[np.uint8]
Row = tuple[str, str, str]


class Wanted(NamedTuple):
    """What `triscale export` is asked for."""

    size: tuple[int, int] | str | None = None  # "dynamic"; None: as the weights say
    batch: int | None = None  # None: any
    resize: bool = False
    raw: bool = False
    half: bool = False
    calibrate: Path | None = None  # the data whose pictures tell the ranges for int8
    check: Path | None = None


def export(weights: Path, target: Path, wanted: Wanted) -> tuple[list[str], list[Row]]:
    """Write `target` from weights; lines about the comparison, and a table of the mAP of both.

    Raises UserError, and leaves nothing, if what was written finds something else.
    """
    source = find_weights(weights)
    if is_exported(source):
        raise UserError(f"{source}: is exported already; export the weights it was made from")
    kind = _kind(target, wanted)
    model, info = load_weights(source)
    size = (info.size, info.size) if wanted.size is None else wanted.size
    form = Form(
        None if isinstance(size, str) else size,
        batch=wanted.batch,
        resize=wanted.resize,
        raw=wanted.raw,
        half=wanted.half and kind != "openvino",  # it halves its weights by itself
    )
    header = header_of(info, model, form)
    data = _open(wanted.check, info.classes) if wanted.check else None
    engine = TorchEngine(source, device="cpu", size=form.size)
    with TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}-") as folder:
        made = Path(folder) / target.name
        onnx = made if kind == "onnx" else Path(folder) / "detector.onnx"
        if kind == "pt2":
            write_pt2(made, model, info, form)
        else:
            write_onnx(onnx, model, info, form)
        if wanted.calibrate:
            header = header._replace(precision="int8")
            quantise(onnx, _fitted(engine, _training(wanted.calibrate, info.classes)), header)
        if kind == "openvino":
            write_openvino(made, onnx, header=header, half=wanted.half)
        lines = _compare(engine, made, header, data)
        rows = _measure(engine, made, header, data) if data and not (wanted.raw or wanted.resize) else []
        if target.is_dir():
            shutil.rmtree(target)
        shutil.move(made, target)
    return lines, rows
