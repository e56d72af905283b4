"""Small clean data sets in three formats, all with the same pictures and objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 120, 160
CLASSES = ("ant", "bee")
TRAIN, VAL = [f"t{i}" for i in range(6)], [f"v{i}" for i in range(3)]
# xyxy in continuous pixels, the same in all pictures; whole numbers, so that VOC can hold them
BOXES = ((10, 10, 50, 60), (60, 20, 110, 50), (20, 70, 60, 110), (90, 60, 150, 110))
LABELS = (0, 1, 0, 1)


class Clean(NamedTuple):
    """A set on disk, and where its parts are."""

    format: str
    root: Path
    images: dict[str, Path]  # by the picture's name
    labels: dict[str, Path]  # COCO: one file for all of a split


def picture(name: str) -> NDArray[np.uint8]:
    """A smooth picture in colour that looks like no other."""
    seed = int.from_bytes(name.encode(), "big")
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8)


def write_set(root: Path, format: str) -> Clean:
    """A clean set: 6 pictures to train on, 3 to validate on."""
    return {"voc": _write_voc, "yolo": _write_yolo, "coco": _write_coco}[format](root)


def _write_voc(root: Path) -> Clean:
    found = Clean("voc", root, {}, {})
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, names in (("train", TRAIN), ("val", VAL)):
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{n}\n" for n in names))
        for name in names:
            found.images[name] = root / f"JPEGImages/{name}.jpg"
            found.labels[name] = root / f"Annotations/{name}.xml"
            cv2.imwrite(str(found.images[name]), picture(name))
            objects = "".join(
                f"<object><name>{CLASSES[label]}</name><pose>Left</pose><bndbox>"
                f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
                "</bndbox></object>\n"
                for (x1, y1, x2, y2), label in zip(BOXES, LABELS, strict=True)
            )
            found.labels[name].write_text(
                f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>\n"
                f"{objects}</annotation>\n"
            )
    return found


def _write_yolo(root: Path) -> Clean:
    found = Clean("yolo", root, {}, {})
    for split, names in (("train", TRAIN), ("val", VAL)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for name in names:
            found.images[name] = root / f"images/{split}/{name}.jpg"
            found.labels[name] = root / f"labels/{split}/{name}.txt"
            cv2.imwrite(str(found.images[name]), picture(name))
            found.labels[name].write_text(
                "".join(
                    f"{label} {(x1 + x2) / 2 / WIDTH:.6f} {(y1 + y2) / 2 / HEIGHT:.6f} "
                    f"{(x2 - x1) / WIDTH:.6f} {(y2 - y1) / HEIGHT:.6f}\n"
                    for (x1, y1, x2, y2), label in zip(BOXES, LABELS, strict=True)
                )
            )
    (root / "data.yaml").write_text(
        f"train: images/train\nval: images/val\nnames: {list(CLASSES)}\n"
    )
    return found


def _write_coco(root: Path) -> Clean:
    found = Clean("coco", root, {}, {})
    (root / "annotations").mkdir(parents=True)
    for split, names in (("train", TRAIN), ("val", VAL)):
        (root / split).mkdir()
        file = root / f"annotations/instances_{split}.json"
        images, objects = [], []
        for number, name in enumerate(names, 1):
            found.images[name], found.labels[name] = root / split / f"{name}.jpg", file
            cv2.imwrite(str(found.images[name]), picture(name))
            images.append(
                {"id": number, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT}
            )
            for (x1, y1, x2, y2), label in zip(BOXES, LABELS, strict=True):
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": number,
                        "category_id": label + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                    }
                )
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
        content = {"images": images, "annotations": objects, "categories": categories}
        file.write_text(json.dumps(content))
    return found
