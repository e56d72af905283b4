"""What an exported file says about itself: all that is needed to use it, as texts.

ONNX keeps them in its metadata, OpenVINO in its `rt_info`. Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from triscale.detections import Detections
from triscale.errors import UserError
from triscale.pixels import Fit

FORMAT = "triscale-export-1"
Precision = Literal["fp32", "fp16", "int8"]

# the arrays of a graph's inputs by name -> those of its outputs
Run = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Header:
    """An exported network."""

    classes: tuple[str, ...]
    size: tuple[int, int]  # (height, width) of the network input
    dynamic: bool  # any multiples of 32 go in; `size` is what the network was trained for
    batch: int | None  # pictures at once; None: any number
    fit: Fit  # how pictures are brought to that size
    resize: bool  # inside the graph
    raw: bool  # the network's own outputs: no decoding, no suppression
    precision: Precision
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
            f"{texts.get('format', 'not stated')!r:.80}"
        )
    try:
        values = {name: json.loads(texts[name]) for name in Header.__dataclass_fields__}
        height, width = values["size"]
        header = Header(
            classes=tuple(map(str, values["classes"])),
            size=(_number(height, 32, 8192), _number(width, 32, 8192)),
            dynamic=values["dynamic"] is True,
            batch=None if values["batch"] is None else _number(values["batch"], 1, 9999),
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
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{source}: its metadata is damaged ({error!s:.200})") from error
    return header


def _one_of(value: Any, *known: str) -> Any:
    if value not in known:
        raise ValueError(f"expected {' or '.join(known)}, found {value!r:.80}")
    return value


def _number(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected a number from {least} to {most}, found {value!r:.80}")
    return value


def require_usable(header: Header, *, source: str) -> None:
    """UserError if the graph isn't one that `Detector` can feed."""
    if header.raw or header.resize:
        flag = "--raw" if header.raw else "--resize"
        raise UserError(
            f"{source}: was exported with {flag}, for other programs; export it without that flag "
            "to use it here"
        )


def size_for(header: Header, size: tuple[int, int] | None, *, source: str) -> tuple[int, int]:
    """The size of the network input that is asked for, None: the graph's own."""
    if size in (None, header.size):
        return header.size
    if not header.dynamic:
        was, asked = ("x".join(map(str, sides)) for sides in (header.size, size))
        raise UserError(
            f"{source}: takes pictures of {was}, not of {asked}; export it with --size dynamic for "
            "any size"
        )
    return size


def run_whole(
    run: Run, header: Header, images: NDArray[np.uint8], sizes: NDArray[np.int64]
) -> list[Detections]:
    """What a whole graph finds in pictures (N, H, W, 3) that had the sizes (N, 2)."""
    return unpacked(run_in_batches(run, header, {"images": images, "sizes": sizes}))


def run_in_batches(
    run: Run, header: Header, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The outputs for any number of pictures, at least one.

    A graph of a fixed number of them is given the last one again to fill its batch.
    """
    number = len(inputs["images"])
    if header.batch in (None, number):
        return dict(run(inputs))
    found: list[Mapping[str, NDArray[Any]]] = []
    for start in range(0, number, header.batch):
        rows = np.minimum(np.arange(start, start + header.batch), number - 1)
        found.append(run({name: values[rows] for name, values in inputs.items()}))
    return {name: np.concatenate([part[name] for part in found])[:number] for name in found[0]}


def unpacked(outputs: Mapping[str, NDArray[Any]]) -> list[Detections]:
    """boxes (N, K, 4), scores, labels (N, K), count (N,) of a graph, per picture."""
    return [
        Detections(outputs["boxes"][i, :n], outputs["scores"][i, :n], outputs["labels"][i, :n])
        for i, n in enumerate(outputs["count"].tolist())
    ]
