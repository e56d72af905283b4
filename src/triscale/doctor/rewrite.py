"""Label files rewritten: single objects dropped or given another box, everything else kept.

A number that isn't changed stays as the text that it was (VOC, YOLO) or the same number (COCO).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from triscale.data.voc import MAX_XML_BYTES, parse_xml
from triscale.doctor.findings import Box
from triscale.files import read_lines, read_regular, write_atomically

Boxes = Mapping[int, Box | None]  # by the object's number; None: drop it

_MAX_BYTES = 1 << 34


def as_written(edges: Box, item: str, *, size: tuple[int, int]) -> Box:
    """A box of a format's `Convention.item` from xyxy pixels; `size` is (height, width)."""
    x1, y1, x2, y2 = edges
    height, width = size
    if item == "object":  # VOC counts pixels from 1
        return x1 + 1, y1 + 1, x2, y2
    if item == "line":
        return (
            (x1 + x2) / 2 / width,
            (y1 + y2) / 2 / height,
            (x2 - x1) / width,
            (y2 - y1) / height,
        )
    return x1, y1, x2 - x1, y2 - y1


def rewrite_xml(path: Path, boxes: Boxes, *, size: tuple[int, int] | None = None) -> None:
    """Change objects of a VOC file, and state the (height, width) of its picture."""
    root = parse_xml(read_regular(path, limit=MAX_XML_BYTES))
    for number, element in enumerate(root.findall("object"), 1):
        if number not in boxes:
            continue
        box = boxes[number]
        if box is None:
            root.remove(element)
            continue
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            found = element.find(f"bndbox/{key}")
            assert found is not None, (path, number, key)  # the reader found them
            found.text = _plain(value)
    if size:
        element = root.find("size")
        element = ElementTree.SubElement(root, "size") if element is None else element
        for key, value in zip(("height", "width"), size, strict=True):
            child = element.find(key)
            child = ElementTree.SubElement(element, key) if child is None else child
            child.text = str(value)
    write_atomically(path, ElementTree.tostring(root, encoding="utf-8"))


def rewrite_rows(path: Path, boxes: Boxes) -> None:
    """Change lines of a YOLO label file; a polygon becomes its clipped box."""
    rows: list[str] = []
    for number, row in enumerate(read_lines(path, limit=_MAX_BYTES), 1):
        box = boxes.get(number)
        if box is not None:
            row = " ".join([row.split()[0], *(_plain(value) for value in box)])  # noqa: PLW2901
        if box is not None or number not in boxes:
            rows.append(row)
    write_atomically(path, "".join(f"{row}\n" for row in rows).encode())


def rewrite_list(path: Path, dropped: Collection[Path], *, names: bool = False) -> None:
    """Take pictures out of a list of paths, or of names without a folder (VOC)."""
    stems = {picture.stem for picture in dropped}
    kept: list[str] = []
    for line in read_lines(path, limit=_MAX_BYTES):
        row = line.strip()
        if names:
            # the lists of one class have a second column
            gone = row in stems or re.sub(r"\s+(-1|0|1)$", "", row) in stems
        else:
            gone = bool(row) and path.parent / row in dropped
        if not gone:
            kept.append(line)
    write_atomically(path, "".join(f"{line}\n" for line in kept).encode())


def rewrite_yaml(path: Path, target: Path, settle: Callable[[str], str]) -> None:
    """A data.yaml without its `path` and with `settle`d splits, if they aren't so already."""
    content = yaml.safe_load(read_regular(path, limit=_MAX_BYTES))
    before = dict(content)
    content.pop("path", None)
    for key in ("train", "val", "test"):
        if isinstance(places := content.get(key), list):
            content[key] = [settle(str(place)) for place in places]
        elif places:
            content[key] = settle(str(places))
    if content != before or not target.exists():
        write_atomically(target, yaml.safe_dump(content, sort_keys=False).encode())


class CocoEdits:
    """What is to become of the entries of a COCO file; positions count from 1."""

    def __init__(self) -> None:
        self.categories: set[int] = set()  # positions to be dropped
        self.images: set[int] = set()
        self.image_ids: set[str] = set()
        self.annotations: set[int] = set()
        self.areas: set[int] = set()  # positions whose area is to be that of the box
        self.sizes: dict[int, tuple[int, int]] = {}  # by position: height, width
        # by number and box as written, which an entry without a fault can't share
        self.boxes: dict[tuple[int, Box], Box | None] = {}


def rewrite_coco(path: Path, edits: CocoEdits) -> None:
    """Change a COCO file; objects go with their pictures."""
    content = json.loads(read_regular(path, limit=_MAX_BYTES))
    for position, size in edits.sizes.items():
        entry = content["images"][position - 1]
        entry["height"], entry["width"] = size
    content["categories"] = [
        entry for i, entry in enumerate(content["categories"], 1) if i not in edits.categories
    ]
    content["images"] = [
        entry
        for i, entry in enumerate(content["images"], 1)
        if i not in edits.images and str(entry["id"]) not in edits.image_ids
    ]
    ids = {entry["id"] for entry in content["images"]}
    content["annotations"] = [
        entry
        for i, entry in enumerate(content["annotations"], 1)
        if i not in edits.annotations and entry["image_id"] in ids and _keep(entry, i, edits)
    ]
    write_atomically(path, json.dumps(content).encode())


def _keep(entry: dict[str, Any], position: int, edits: CocoEdits) -> bool:
    """Change an annotation; whether it stays."""
    box = entry["bbox"]
    if position in edits.areas:
        entry["area"] = box[2] * box[3]
    number = entry["id"] if type(entry.get("id")) is int else position
    key = number, (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    if key not in edits.boxes:
        return True
    new = edits.boxes[key]
    if new is not None:
        entry["bbox"] = [_short(value) for value in new]
    return new is not None


def _short(value: float) -> float:
    return float(np.round(value, 6))


def _plain(value: float) -> str:
    return f"{value:.9g}"
