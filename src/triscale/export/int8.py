"""Post-training quantisation of an exported ONNX file: convolutions in 8 bits.

Only the network's body is quantised: what lies between the first convolution and the last ones.
Pixels, the outputs' logits, and above all the boxes and scores that are made of them keep their
precision: 8 bits over 416 pixels would move each box by up to a pixel, and scores by hundredths.
Weights have a scale per channel, activations one per tensor, from the ranges seen on pictures
(Jacob et al. 2018, sections 2 and 3; Krishnamoorthi 2018, section 3).

onnxruntime computes a convolution and its activation one after the other, each from 8 bits to 8.
OpenVINO computes both at once, and loses accuracy if it is told to round in between.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from triscale.engines.header import Header
from triscale.export.onnx import save_onnx

Inputs = Mapping[str, NDArray[Any]]


def quantise(path: Path, inputs: Iterable[Inputs], *, header: Header, fused: bool) -> None:
    """Replace an ONNX file by its quantised form; `inputs` are those the ranges are taken from.

    `fused` is for programs that compute a convolution and its activation at once.
    """
    import onnx
    from onnxruntime import quantization

    class Pictures(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, NDArray[Any]] | None:  # pyright: ignore
            found = next(self.left, None)
            return None if found is None else dict(found)

    graph = onnx.load(path).graph
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preparation that the exporter has done
    try:
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            made = Path(folder) / "int8.onnx"
            quantization.quantize_static(
                path,
                made,
                Pictures(),
                quant_format=quantization.QuantFormat.QDQ,
                nodes_to_quantize=body(graph),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            proto = onnx.load(made)
    finally:
        root.setLevel(level)
    del proto.graph.value_info[:]
    if fused:
        _fuse(proto.graph)
    save_onnx(path, proto, header)


def body(graph: Any) -> list[str]:
    """The names of the nodes that follow a convolution and lead to one, and of those themselves.

    Without the last ones, whose outputs are the logits.
    """
    after, before = set[str](), set[str]()  # tensors that are made of, or lead to, a convolution
    following = list[Any]()
    for node in graph.node:
        if node.op_type == "Conv" or after.intersection(node.input):
            after.update(node.output)
            following.append(node)
    names = list[str]()
    for node in reversed(following):
        if before.intersection(node.output):
            names.append(node.name)
        elif node.op_type != "Conv":
            continue
        before.update(node.input)
    return names[::-1]


def _fuse(graph: Any) -> None:
    """Take out the rounding between a convolution and its activation."""
    maker = {output: node for node in graph.node for output in node.output}
    for node in list(graph.node):
        if node.op_type not in ("LeakyRelu", "Relu"):
            continue
        back = maker[node.input[0]]
        there = maker.get(back.input[0])
        if back.op_type == "DequantizeLinear" and there and maker[there.input[0]].op_type == "Conv":
            node.input[0] = there.input[0]
            graph.node.remove(back)
            graph.node.remove(there)
