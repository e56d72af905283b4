"""The classes of VOC and COCO, and how the names of two sources are matched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from triscale.errors import UserError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator"),
    *("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
_VOC_TO_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
SYNONYMS = _VOC_TO_COCO | {coco: voc for voc, coco in _VOC_TO_COCO.items()}


def require_names(names: object, *, source: str) -> tuple[str, ...]:
    """`names` as class names; UserError unless they are texts of printable characters, all
    different."""
    if not isinstance(names, (list, tuple)):
        raise UserError(f"{source}: expected a list of class names, found {names!r:.80}")
    known: set[str] = set()
    for name in cast("Sequence[object]", names):
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UserError(f"{source}: expected class names to be texts, found {name!r:.80}")
        if name in known:
            raise UserError(f"{source}: expected each class name once, found {name!r:.80} twice")
        known.add(name)
    return tuple(cast("Sequence[str]", names))


def class_numbers(names: Iterable[str], classes: Sequence[str]) -> dict[str, int]:
    """The class of each name: an exact match, or else the only one that differs just in case, or
    else the one that VOC or COCO calls by another name.

    Names of no class are absent from the answer.
    """
    exact = {name: label for label, name in enumerate(classes)}
    folded: dict[str, list[int]] = {}
    for label, name in enumerate(classes):
        folded.setdefault(name.casefold(), []).append(label)
    numbers: dict[str, int] = {}
    for name in names:
        other = SYNONYMS.get(name.casefold())
        candidates = folded.get(name.casefold()) or (folded.get(other, []) if other else [])
        if name in exact:
            candidates = [exact[name]]
        if len(candidates) == 1:
            numbers[name] = candidates[0]
    return numbers
