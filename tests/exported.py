"""A file with inputs, outputs and metadata of an exported network, but simple arithmetic inside.

Writing a real one takes torch's exporter half a minute.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from triscale.engines.header import Header

CLASSES = ("red thing", 'côté "x"', "[]")
SHARES = [0.1, 0.2, 0.6, 0.9], [0, 0, 0.5, 1], [0, 0, 1, 1]  # of the picture's sides: the boxes


def write_exported(path: Path, *, resize: bool) -> None:
    """Three objects in any picture; their scores are the means of red, green and blue."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'triscale[export]'")
    helper, kinds = onnx.helper, onnx.TensorProto

    def node(operator: str, inputs: str, output: str, **attributes: int) -> object:
        return helper.make_node(operator, inputs.split(), [output], **attributes)

    def constant(name: str, values: list[float], *shape: int, kind: int = kinds.FLOAT) -> object:
        return helper.make_tensor(name, kind, shape, values)

    def value(name: str, kind: int, *shape: str | int) -> object:
        return helper.make_tensor_value_info(name, kind, shape)

    whole = kinds.INT64
    own_sizes = [  # (N, H, W, 3) -> (1, 2)
        node("Shape", "images", "shape", start=1, end=3),
        node("Unsqueeze", "shape first", "sizes"),
    ]
    graph = helper.make_graph(
        [
            node("Cast", "images", "levels", to=kinds.FLOAT),
            node("ReduceMean", "levels middle", "means", keepdims=0),
            node("Div", "means most", "scores"),
            *(own_sizes if resize else []),
            node("Gather", "sizes corners", "corner", axis=1),
            node("Cast", "corner", "lengths", to=kinds.FLOAT),
            node("Unsqueeze", "lengths second", "row"),
            node("Mul", "shares row", "boxes"),
            node("Mul", "scores nothing", "zero"),
            node("Cast", "zero", "zeros", to=whole),
            node("Add", "zeros numbers", "labels"),
            node("ReduceSum", "zeros second", "none", keepdims=0),
            node("Add", "none three", "count"),
        ],
        "simple",
        [
            value("images", kinds.UINT8, "N", "H", "W", 3),
            *([] if resize else [value("sizes", whole, "N", 2)]),
        ],
        [
            value("boxes", kinds.FLOAT, "N", 3, 4),
            value("scores", kinds.FLOAT, "N", 3),
            value("labels", whole, "N", 3),
            value("count", whole, "N"),
        ],
        [
            constant("first", [0], 1, kind=whole),
            constant("second", [1], 1, kind=whole),
            constant("middle", [1, 2], 2, kind=whole),
            constant("most", [255]),
            constant("nothing", [0]),
            constant("corners", [1, 0, 1, 0], 4, kind=whole),
            constant("shares", [share for box in SHARES for share in box], 1, 3, 4),
            constant("numbers", [0, 1, 2], 3, kind=whole),
            constant("three", [3], 1, kind=whole),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    header = Header(
        classes=CLASSES,
        size=(64, 64),
        batch=None,
        fit="stretch",
        resize=resize,
        raw=False,
        precision="fp32",
        score_threshold=0.01,
        anchors=(((1, 1),),),
        scale_x_y=1.0,
        version="0",
    )
    helper.set_model_props(proto, header.texts())
    onnx.checker.check_model(proto)
    onnx.save_model(proto, path)
