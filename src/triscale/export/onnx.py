"""ONNX files: the graph, and in its metadata what has to be known about it.

torch's exporter writes the network; the suppression is the standard operator. Names of Python files
and call stacks, which the exporter notes on each node, are taken out again.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import triscale
from triscale.config import build
from triscale.decode import DecodeConfig
from triscale.engines.header import Header, Precision
from triscale.export.graph import Raw, Suppress, Whole, onnx_suppress
from triscale.files import write_atomically
from triscale.model.yolo import YOLOv3
from triscale.weights.contents import WeightsInfo

OPSET = 18
OUTPUTS = ["boxes", "scores", "labels", "count"]  # the fields of `Outputs`
MOST = 16_384  # pixels of a side, pictures of a batch


class Form(NamedTuple):
    """What is wanted of an exported graph."""

    size: tuple[int, int]  # height, width of the network input
    dynamic: bool = False  # any multiples of 32 go in
    batch: int | None = None  # pictures; None: any number
    resize: bool = False  # pictures of any size go in, and are resized inside
    raw: bool = False  # the network's own outputs, without decoding and suppression
    half: bool = False  # the network computes in float16


def header_of(info: WeightsInfo, model: YOLOv3, form: Form, *, precision: Precision) -> Header:
    """What the file is going to say."""
    return Header(
        classes=info.classes,
        size=form.size,
        dynamic=form.dynamic,
        batch=form.batch,
        fit=info.input.fit,
        resize=form.resize,
        raw=form.raw,
        precision=precision,
        score_threshold=_decode(info).score_threshold,
        anchors=model.anchors,
        scale_x_y=model.scale_x_y,
        version=triscale.__version__,
        recipe=info.recipe,
    )


def graph_of(
    model: YOLOv3, info: WeightsInfo, form: Form, *, suppress: Suppress
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """The function of `form`, an example of each input, and what of their shapes may change."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    batch = form.batch or 2  # an example of 1 would be taken for a constant
    height, width = (300, 500) if form.resize else (320, 416) if form.dynamic else form.size
    inputs = {"images": torch.zeros(batch, height, width, 3, dtype=torch.uint8)}
    free = torch.export.Dim
    number = {} if form.batch else {0: free("N", min=1, max=MOST)}
    sides: dict[int, Any] = {}
    if form.resize:
        sides = {1: free("H", min=2, max=MOST), 2: free("W", min=2, max=MOST)}
    elif form.dynamic:
        most = MOST // 32
        sides = {1: 32 * free("h", min=1, max=most), 2: 32 * free("w", min=1, max=most)}
    shapes: dict[str, Any] = {"images": {**number, **sides}}
    if form.raw:
        return Raw(model, info.input, half=form.half).eval(), inputs, shapes
    if not form.resize:
        inputs["sizes"] = torch.tensor([[height, width]] * batch)
        shapes["sizes"] = number
    whole = Whole(
        model,
        info.input,
        size=None if form.dynamic else form.size,
        decode=_decode(info),
        suppress=suppress,
        resize=form.resize,
        half=form.half,
    )
    return whole.eval(), inputs, shapes


def write_onnx(path: Path, model: YOLOv3, info: WeightsInfo, form: Form, *, header: Header) -> None:
    """Write `model` as an ONNX file, atomically."""
    import onnx

    graph, inputs, shapes = graph_of(model, info, form, suppress=onnx_suppress)
    with quietly(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            dynamo=True,
            input_names=list(inputs),
            output_names=outputs_of(form),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for part in (proto.graph, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del part.metadata_props[:]
    del proto.graph.value_info[:]  # the suppression's is made up: how much it finds isn't known
    onnx.checker.check_model(proto)
    save_onnx(path, proto, header)


def save_onnx(path: Path, proto: Any, header: Header) -> None:
    """Write an ONNX model with what is known about it, atomically."""
    del proto.metadata_props[:]
    for name, text in header.texts().items():
        proto.metadata_props.add(key=name, value=text)
    proto.producer_name, proto.producer_version = "triscale", triscale.__version__
    write_atomically(path, proto.SerializeToString(deterministic=True))


def outputs_of(form: Form) -> list[str]:
    """The names of a graph's outputs."""
    return ["predictions"] if form.raw else OUTPUTS


def _decode(info: WeightsInfo) -> DecodeConfig:
    return build(DecodeConfig, info.recipe.get("decode", {}), where="decode")


@contextmanager
def quietly() -> Generator[None]:
    """Without torch's remarks on packages that aren't there, and on its own calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
