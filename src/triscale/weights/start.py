"""A network that begins with another's weights: what fits is loaded, and every rest is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from triscale.data.classes import class_numbers
from triscale.errors import UserError
from triscale.model.yolo import ModelConfig, YOLOv3, build_model, reclass, skeleton
from triscale.pixels import InputConfig
from triscale.weights.contents import Weights, with_normalisation


class Start(NamedTuple):
    """A network to train on."""

    model: YOLOv3
    config: ModelConfig  # the recipe's, with the file's anchors if the recipe names none
    report: tuple[str, ...]  # lines for people: what was loaded, adapted, left at random


def start_from(
    weights: Weights,
    config: ModelConfig,
    classes: Sequence[str],
    *,
    input_config: InputConfig,
    source: str,
    generator: torch.Generator,
) -> Start:
    """A network for `classes` with as much of `weights` as it can take.

    A new class begins as the old one of its name; what the file doesn't have is random, drawn from
    `generator`. Raises UserError if the weights are another network's.
    """
    info, old = weights.info, weights.info.classes
    _require_same(weights, config, source)
    adapted: list[str] = []
    if info.input.normalise != input_config.normalise:
        weights = with_normalisation(weights, input_config.normalise)
        adapted.append(
            f"the first convolution, from {info.input.normalise} to {input_config.normalise} input "
            "(exact but for the border)"
        )
    tensors = weights.tensors
    if old and not config.anchors and info.model.anchors:
        config = replace(config, anchors=info.model.anchors)
        adapted.append("the recipe, to the file's anchors")
    theirs, ours = skeleton(info.model, 1).anchors, skeleton(config, 1).anchors
    if old and [len(row) for row in theirs] != [len(row) for row in ours]:
        tensors = {k: t for k, t in tensors.items() if not k.startswith("head.outputs.")}
        old = ()
    elif old and theirs != ours:
        adapted.append("the anchors: sizes are now relative to the recipe's")
    if old != tuple(classes) and len(old) == len(classes) and not info.named:
        adapted.append("the classes, by position: the file has no names")
        old = tuple(classes)

    model = build_model(config, len(old or classes), generator=generator)
    state = model.state_dict()
    model.load_state_dict(tensors, strict=False)
    at_random = _missing(state, tensors)
    if old and old != tuple(classes):
        known = {name: old[label] for name, label in class_numbers(classes, old).items()}
        model = reclass(
            model,
            config,
            old_classes=old,
            new_classes=classes,
            generator=generator,
            reuse={new: was for new, was in known.items() if new != was},
        )
        matched = [name if name == was else f"{name} = {was}" for name, was in known.items()]
        adapted.append(f"the outputs, with {_classes(matched)} by name")
        unknown = [name for name in classes if name not in known]
        if unknown:
            at_random.append(f"the outputs for {_classes(unknown)}")
    report = [f"{source}: loaded {len(_layers(tensors))} of {len(_layers(state))} convolutions"]
    report += [f"  adapted: {line}" for line in adapted]
    report += [f"  at random: {line}" for line in at_random]
    if old and info.model.scale_x_y != config.scale_x_y:
        report.append(
            f"  not converted: its centres are meant for scale_x_y={info.model.scale_x_y:g}; "
            f"--set model.scale_x_y={info.model.scale_x_y:g} keeps them"
        )
    if info.classes and info.input.fit != input_config.fit:
        report.append(
            f"  not kept: pictures by {info.input.fit}; --set input.fit={info.input.fit} keeps it"
        )
    return Start(model, config, tuple(report))


def _require_same(weights: Weights, config: ModelConfig, source: str) -> None:
    """UserError unless the file holds the recipe's network: all of it, or first layers."""
    info, tensors = weights.info, weights.tensors
    if info.model.backbone != config.backbone:
        raise UserError(
            f"{source}: holds {info.model.backbone}, the recipe wants {config.backbone}; "
            f"use --set model.backbone={info.model.backbone} (train_yolo3: --network)"
        )
    has_head = any(name.startswith("head.") for name in tensors)
    if has_head and info.model.spp != config.spp:
        wanted = "true" if info.model.spp else "false"
        raise UserError(f"{source}: has another head; use --set model.spp={wanted}")
    expected = skeleton(info.model, max(len(info.classes), 1)).state_dict()
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]
    wrong = [n for n, t in tensors.items() if n not in expected or expected[n].shape != t.shape]
    wrong += [n for n in (needed if info.classes else needed[:5]) if n not in tensors]
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} tensors do not fit {config.backbone}, the first is {wrong[0]}"
        )


def _layers(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the convolutions' weights."""
    return [name for name, tensor in tensors.items() if tensor.ndim == 4]


def _missing(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """What of a network the file does not have, in words."""
    lines: list[str] = []
    for part in ("backbone", "head"):
        there = [name for name in _layers(state) if name.startswith(part)]
        missing = [name for name in there if name not in tensors]
        if missing:
            lines.append(f"{len(missing)} of the {len(there)} convolutions of the {part}")
    return lines


def _classes(names: Sequence[str]) -> str:
    noun = "class" if len(names) == 1 else "classes"
    return f"{len(names)} {noun} ({', '.join(names)})" if names else "no class"
