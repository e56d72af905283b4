"""Darknet's `.cfg` files: read, compared with the networks that we have, and written.

A .cfg is refused if it says anything that would change what the network computes. What concerns the
training alone is ignored. Source: the files of Darknet that `darknet_layers.py` names, and the
meaning and defaults of their keys in Darknet and in AlexeyAB's continuation of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from triscale.anchors import TINY_ANCHORS, YOLO3_ANCHORS, Anchors
from triscale.errors import UserError
from triscale.model.yolo import ModelConfig
from triscale.pixels import Fit
from triscale.weights.contents import read_text, require_size
from triscale.weights.darknet_layers import NETWORKS, Network, Section, classifier, layers

CLASSIFIER = "darknet53"
MAX_LINE = 1000  # characters; keeps messages and lists of anchors short

# What a key that isn't there means to Darknet. All of these change the result.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "net": {"width": 0, "height": 0, "channels": 0, "letter_box": 1},
    "convolutional": {
        "batch_normalize": 0,
        "filters": 1,
        "size": 1,
        "stride": 1,
        "pad": 0,
        "padding": 0,
        "activation": "logistic",
        "groups": 1,
        "dilation": 1,
        "antialiasing": 0,
        "binary": 0,
        "xnor": 0,
        "flipped": 0,
        "dontload": 0,
        "dontloadscales": 0,
    },
    "maxpool": {"size": 0, "stride": 1, "padding": -1, "antialiasing": 0, "maxpool_depth": 0},
    "shortcut": {
        "from": (),
        "activation": "linear",
        "alpha": 1.0,
        "beta": 1.0,
        "weights_type": "none",
    },
    "route": {"layers": (), "groups": 1, "group_id": 0},
    "upsample": {"stride": 2, "scale": 1.0},
    "avgpool": {},
    "yolo": {
        "classes": 20,
        "num": 1,
        "mask": (),
        "anchors": "",
        "scale_x_y": 1.0,
        "new_coords": 0,
    },
}
_INDICES = ("from", "layers")  # of other layers; below 0 counted from the layer itself
_OUTPUT_KEYS = ("num", "mask", "anchors", "scale_x_y")  # become part of ModelConfig
# Keys of layers that matter to the training, or to the suppression after the network.
_IGNORED = frozenset(
    {
        *("learning_rate", "stopbackward", "onlyforward", "smooth", "burnin_update", "clip"),
        *("train_only_bn", "grad_centr", "jitter", "resize", "random", "max", "ignore_thresh"),
        *("truth_thresh", "iou_thresh", "iou_thresh_kind", "iou_loss", "iou_normalizer"),
        *("obj_normalizer", "cls_normalizer", "delta_normalizer", "max_delta", "focal_loss"),
        *("label_smooth_eps", "objectness_smooth", "counters_per_class", "nms_kind", "beta_nms"),
        *("dont_update", "show_details"),
    }
)
_ALIASES = {"network": "net", "conv": "convolutional", "max": "maxpool", "avg": "avgpool"}

_NET = """\
[net]
batch=1
subdivisions=1
width={size}
height={size}
channels=3
letter_box={letter_box}
momentum=0.9
decay=0.0005
learning_rate=0.001
burn_in=1000
max_batches=500200
policy=steps
steps=400000,450000
scales=.1,.1
"""
_YOLO_TRAINING = {"jitter": ".3", "ignore_thresh": ".7", "truth_thresh": "1", "random": "1"}


class _Given(NamedTuple):
    """A section of a file."""

    kind: str
    line: int
    values: dict[str, tuple[int, str]]  # key -> line, text


class _Deviation(NamedTuple):
    """A difference between a file and a network."""

    layer: int
    line: int
    text: str


def read_cfg(path: Path) -> Network:
    """The network that a .cfg describes.

    Raises UserError, with line and layer, if the file can't be read or says anything that would
    change the result of the known network that is nearest to it.
    """
    net, *found = _parse(path)
    size, fit = _input(path, net)
    num_classes, anchors, scale_x_y = _heads(path, found)
    candidates: dict[str, Network] = {}
    if anchors:
        for name, config in NETWORKS.items():
            own = replace(_with_anchors(config, anchors), scale_x_y=scale_x_y)
            candidates[name] = Network(own, num_classes, layers(own, num_classes), size, fit)
    else:
        found = found[: len(classifier())]  # what follows is softmax
        candidates[CLASSIFIER] = Network(ModelConfig(), 0, classifier(), size, fit)
    deviations = {
        name: list(_deviations(path, found, network.sections))
        for name, network in candidates.items()
    }
    # the one that is meant: none, or the first one comes later than in others, or the second
    meant = min(deviations, key=lambda name: [-d.layer for d in deviations[name]])
    if deviations[meant]:
        layer, line, text = deviations[meant][0]
        why = "" if anchors else ", as there is no [yolo]"
        raise UserError(
            f"{path}:{line or net.line}: layer {layer}: {text} (compared with {meant}{why}; "
            f"known are {', '.join([*NETWORKS, CLASSIFIER])})"
        )
    return candidates[meant]


def cfg_text(network: Network, *, path: Path) -> str:
    """The text of a .cfg that Darknet builds this network from, to test it or to train it."""
    if network.size % 32:
        raise UserError(f"{path}: Darknet needs a size that 32 divides, found {network.size}")
    parts = [_NET.format(size=network.size, letter_box=int(network.fit == "letterbox"))]
    for section in network.sections:
        keys = {**section.keys, **(_YOLO_TRAINING if section.kind == "yolo" else {})}
        lines = [f"{key}={_text(value)}\n" for key, value in keys.items()]
        parts.append(f"[{section.kind}]\n{''.join(lines)}")
    return "\n".join(parts)


def _parse(path: Path) -> list[_Given]:
    """The sections of a file, [net] first."""
    sections: list[_Given] = []
    for number, raw in enumerate(read_text(path).split("\n"), start=1):
        line = re.split("[#;]", raw, maxsplit=1)[0].strip()
        key, equals, text = (part.strip() for part in line.partition("="))
        if header := re.fullmatch(r"\[\s*([\w-]{1,30})\s*\]", line):
            kind = _ALIASES.get(header[1], header[1])
            sections.append(_Given(kind, number, {}))
        elif line:
            if len(line) > MAX_LINE:
                raise UserError(
                    f"{path}:{number}: expected at most {MAX_LINE} characters, {_found(line)}"
                )
            if not (key and equals and text):
                raise UserError(f"{path}:{number}: expected key=value or [section], {_found(line)}")
            if not sections:
                raise UserError(f"{path}:{number}: expected the section [net], {_found(line)}")
            kind, _, values = sections[-1]
            first, before = values.setdefault(key, (number, text))  # the one that Darknet takes
            if before != text and key in _DEFAULTS.get(kind, {}):
                raise UserError(
                    f"{path}:{number}: expected {key}={before} as in line {first}, {_found(text)}"
                )
    if not sections or sections[0].kind != "net":
        kind = f"[{sections[0].kind}]" if sections else "nothing"
        raise UserError(f"{path}: expected a .cfg that begins with [net], {_found(kind)}")
    return sections


def _input(path: Path, net: _Given) -> tuple[int, Fit]:
    """Size and fit of the network input."""
    values = _values(path, net)
    width, height = values["width"], values["height"]
    line = net.values.get("height", (net.line,))[0]
    if width != height:
        raise UserError(
            f"{path}:{line}: the network input is square here, found width={width} and "
            f"height={height}; set height={width}"
        )
    require_size(width, source=f"{path}:{line}")
    if width % 32:
        raise UserError(f"{path}:{line}: expected a width that 32 divides, found {width}")
    if values["channels"] != 3:
        line = net.values.get("channels", (net.line,))[0]
        raise UserError(f"{path}:{line}: expected channels=3 (RGB), found {values['channels']}")
    # Darknet itself always letterboxes; in AlexeyAB's the key decides, if it is there.
    return width, "letterbox" if values["letter_box"] else "stretch"


def _heads(path: Path, found: Sequence[_Given]) -> tuple[int, Anchors, float]:
    """Number of classes, anchors and scale_x_y as the [yolo] sections have them."""
    anchors: list[tuple[tuple[float, float], ...]] = []
    num_classes, scale_x_y = _DEFAULTS["yolo"]["classes"], 1.0
    for section in found:
        if section.kind != "yolo":
            continue
        values = _values(path, section)
        if not anchors:
            num_classes, scale_x_y = values["classes"], values["scale_x_y"]
        where = f"{path}:{section.line}: [yolo]"
        if num_classes < 1:
            raise UserError(f"{where}: expected at least one class, found classes={num_classes}")
        pairs, mask = _pairs(where, values["anchors"]), values["mask"]
        if len(pairs) != values["num"]:
            found_pairs = f"{len(pairs)} pairs in anchors"
            raise UserError(f"{where}: expected num={values['num']} anchors, found {found_pairs}")
        if not mask or not all(0 <= i < len(pairs) for i in mask):
            raise UserError(
                f"{where}: expected a mask of numbers from 0 to {len(pairs) - 1}, "
                f"found mask={_text(mask)}"
            )
        if not 1 <= values["scale_x_y"] <= 3 or values["scale_x_y"] != scale_x_y:
            raise UserError(
                f"{where}: expected a scale_x_y from 1 to 3, the same in all [yolo], "
                f"found scale_x_y={values['scale_x_y']:g}"
            )
        if anchors and len(mask) != len(anchors[0]):
            raise UserError(
                f"{where}: expected a mask of {len(anchors[0])} numbers as in the first [yolo], "
                f"found mask={_text(mask)}"
            )
        anchors.append(tuple(pairs[i] for i in mask))
    return num_classes, tuple(anchors), scale_x_y


def _pairs(where: str, text: str) -> list[tuple[float, float]]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) % 2 or not all(0 < v < math.inf for v in numbers):
        raise UserError(f"{where}: expected anchors=w,h, w,h, ... above 0, {_found(text)}")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _with_anchors(config: ModelConfig, anchors: Anchors) -> ModelConfig:
    default = TINY_ANCHORS if config.backbone == "tiny" else YOLO3_ANCHORS
    own = anchors != default and len(anchors) == len(default)
    return replace(config, anchors=anchors) if own else config


def _deviations(
    path: Path, found: Sequence[_Given], expected: Sequence[Section]
) -> Iterator[_Deviation]:
    """The first one of each layer."""
    line = 0
    for i, (theirs, ours) in enumerate(zip_longest(found, expected)):
        line = theirs.line if theirs else line
        if theirs is None or ours is None or theirs.kind != ours.kind:
            want, have = (f"[{s.kind}]" if s else "the end of the file" for s in (ours, theirs))
            yield _Deviation(i, line, f"expected {want}, found {have}")
            continue
        values = _effective(ours.kind, _values(path, theirs))
        wanted = _effective(ours.kind, {**_DEFAULTS[ours.kind], **ours.keys})
        for key, want in wanted.items():
            have = values[key]
            if key in _INDICES:
                same = _absolute(have, i) == _absolute(want, i)
            else:
                same = have == want or key in _OUTPUT_KEYS
            if not same:
                at, _ = theirs.values.get(key, (line, ""))
                text = f"expected {key}={_text(want)}, found {key}={_text(have)}"
                yield _Deviation(i, at, f"[{ours.kind}] {text}")
                break


def _values(path: Path, section: _Given) -> dict[str, Any]:
    """The values of all keys that matter; UserError for one that can't be read or isn't known."""
    defaults = _DEFAULTS[section.kind]
    values = dict(defaults)
    for key, (line, text) in section.values.items():
        where = f"{path}:{line}: [{section.kind}] {key}"
        if key in defaults:
            values[key] = _convert(where, text, like=defaults[key])
        elif section.kind != "net" and key not in _IGNORED:
            raise UserError(f"{where}: unknown key; delete it if it matters to training only")
    return values


def _convert(where: str, text: str, *, like: Any) -> Any:
    if isinstance(like, str):
        return text
    if isinstance(like, float):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{where}: expected a number, {_found(text)}")
        return value
    numbers = [part.strip() for part in text.split(",")] if isinstance(like, tuple) else [text]
    if not all(re.fullmatch(r"[+-]?[0-9]{1,9}", number) for number in numbers):  # as in C's int
        what = "whole numbers" if isinstance(like, tuple) else "a whole number"
        raise UserError(f"{where}: expected {what}, {_found(text)}")
    values = tuple(int(number) for number in numbers)
    return values if isinstance(like, tuple) else values[0]


def _effective(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the keys settled that depend on others."""
    settled = dict(values)
    if kind == "convolutional":
        # pad=1 stands for padding=size/2, whatever padding says
        settled["pad"] = int(values["pad"] != 0 or values["padding"] == values["size"] // 2)
        settled["padding"] = 0
    if kind == "maxpool":
        settled["size"] = values["size"] or values["stride"]
        if values["padding"] < 0:
            settled["padding"] = settled["size"] - 1
    return settled


def _absolute(indices: Sequence[int], layer: int) -> list[int]:
    return [layer + i if i < 0 else i for i in indices]


def _found(text: str) -> str:
    return f"found {text if len(text) <= 60 else f'{text[:57]}...'!r}"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
