"""What an exported file says about itself: all that is needed to use it, as texts.

ONNX keeps them in its metadata, OpenVINO in its `rt_info`. Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from triscale.detections import Detections
from triscale.errors import UserError

FORMAT = "triscale-export-1"
DEFAULT_SIDE = 416  # of the input of a graph that takes any


@dataclass(frozen=True)
class Header:
    """An exported network."""

    classes: tuple[str, ...]
    size: tuple[int, int] | None  # (height, width) of the network input; None: any multiple of 32
    batch: int | None  # pictures at once; None: any number
    fit: Literal["stretch", "letterbox"]  # how pictures are brought to that size
    resize: bool  # inside the graph
    raw: bool  # the network's own outputs: no decoding, no suppression
    precision: Literal["fp32", "fp16", "int8"]
    score_threshold: float  # what the graph drops
    anchors: tuple[tuple[tuple[float, float], ...], ...]  # w, h in pixels per stride, deepest first
    scale_x_y: float
    version: str  # of the triscale that wrote it
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def texts(self) -> dict[str, str]:
        """By name, as files keep it."""
        values = {name: json.dumps(value) for name, value in vars(self).items()}
        return {"format": FORMAT, **values}


def read_header(texts: Mapping[str, str], *, source: str) -> Header:
    """The header in the texts of a file; UserError if it isn't one of ours."""
    if texts.get("format") != FORMAT:
        raise UserError(
            f"{source}: expected a file that triscale export wrote ({FORMAT}), found format "
            f"{texts.get('format', 'not stated')}"
        )
    try:
        values = {name: json.loads(texts[name]) for name in Header.__dataclass_fields__}
        size = values["size"]
        header = Header(
            classes=tuple(map(str, values["classes"])),
            size=None if size is None else (int(size[0]), int(size[1])),
            batch=None if values["batch"] is None else int(values["batch"]),
            fit=_one_of(values["fit"], "stretch", "letterbox"),
            resize=values["resize"] is True,
            raw=values["raw"] is True,
            precision=_one_of(values["precision"], "fp32", "fp16", "int8"),
            score_threshold=float(values["score_threshold"]),
            anchors=tuple(tuple((float(w), float(h)) for w, h in row) for row in values["anchors"]),
            scale_x_y=float(values["scale_x_y"]),
            version=str(values["version"]),
            recipe=dict(values["recipe"]),
        )
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: its metadata is damaged ({error})") from error
    return header


def _one_of(value: Any, *known: str) -> Any:
    if value not in known:
        raise ValueError(f"expected {' or '.join(known)}, found {value!r}")
    return value


def require_usable(header: Header, *, source: str) -> tuple[int, int]:
    """The (height, width) of the network input; UserError if it isn't one `Detector` can feed."""
    if header.raw or header.resize:
        flag = "--raw" if header.raw else "--resize"
        raise UserError(
            f"{source}: was exported with {flag}, for other programs; export it without that flag "
            "to use it here"
        )
    return header.size or (DEFAULT_SIDE, DEFAULT_SIDE)


def unpacked(outputs: Sequence[NDArray[Any]]) -> list[Detections]:
    """The outputs of a graph, boxes (N, K, 4), scores, labels (N, K), count (N,), per picture."""
    boxes, scores, labels, count = outputs
    return [
        Detections(boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(count.tolist())
    ]
