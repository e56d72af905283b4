"""Faults that can be planted in a clean set, each a function of the set."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tests.doctor.sets import BOXES, HEIGHT, WIDTH, Clean, picture

Plant = Callable[[Clean], None]


def text(name: str, old: str, new: str, *, times: int = 1) -> Plant:
    """Another text in the labels of a picture (VOC, YOLO)."""

    def plant(clean: Clean) -> None:
        before = clean.labels[name].read_text()
        assert old in before, before
        clean.labels[name].write_text(before.replace(old, new, times))

    return plant


def row(name: str, number: int, new: str) -> Plant:
    """Another line, counted from 1, in a YOLO label file; '' deletes it, a further one is added."""

    def plant(clean: Clean) -> None:
        rows = clean.labels[name].read_text().splitlines()
        rows[number - 1 : number] = [new] if new else []
        clean.labels[name].write_text("".join(f"{r}\n" for r in rows))

    return plant


def entry(kind: str, position: int, **values: Any) -> Plant:
    """Other values in an entry of the training file (COCO); a position past the end adds a copy."""

    def plant(clean: Clean) -> None:
        path = clean.labels["t0"]
        content = json.loads(path.read_text())
        if position >= len(content[kind]):
            content[kind].append(dict(content[kind][0]))
        content[kind][position].update(values)
        path.write_text(json.dumps(content))

    return plant


def every(plants: list[Plant]) -> Plant:
    """Several of them."""

    def plant(clean: Clean) -> None:
        for one in plants:
            one(clean)

    return plant


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Plant:
    """Other bytes in a picture file."""

    def plant(clean: Clean) -> None:
        path = clean.images[name]
        path.write_bytes(change(path.read_bytes()))

    return plant


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut_and_closed(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\xff\xd9"


def stored(name: str, convert: Callable[[Image.Image], Image.Image], format: str) -> Plant:
    """The picture in another mode or format, under its old name."""

    def plant(clean: Clean) -> None:
        with Image.open(clean.images[name]) as image:
            image.load()
            buffer = io.BytesIO()
            convert(image).save(buffer, format)
        clean.images[name].write_bytes(buffer.getvalue())

    return plant


def png(name: str, array: np.ndarray[Any, Any] | Callable[[Image.Image], Image.Image]) -> Plant:
    """The picture as PNG under a name that says so; VOC and YOLO find it by its stem."""

    def plant(clean: Clean) -> None:
        path = clean.images[name].with_suffix(".png")
        if isinstance(array, np.ndarray):
            cv2.imwrite(str(path), array)
        else:
            with Image.open(clean.images[name]) as image:
                array(image).save(path)
        clean.images[name].unlink()
        clean.images[name] = path

    return plant


def turned(name: str, *, turn_pixels: bool) -> Plant:
    """EXIF says 6 (turn clockwise); the upright size stays only if the pixels are turned, too."""

    def plant(clean: Clean) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(clean.images[name]) as image:
            stored = image.transpose(Image.Transpose.ROTATE_90) if turn_pixels else image.copy()
        stored.save(clean.images[name], "JPEG", exif=exif, quality=95)

    return plant


def copied(source: str, target: str, *, quality: int = 0) -> Plant:
    """The picture `target` is `source`, as it is or compressed once more at half its size."""

    def plant(clean: Clean) -> None:
        if not quality:
            shutil.copyfile(clean.images[source], clean.images[target])
            return
        image = cv2.resize(picture(source), (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, (WIDTH, HEIGHT))
        settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
        cv2.imwrite(str(clean.images[target]), image, settings)

    return plant


def gone(part: str, name: str) -> Plant:
    """The picture or the labels of `name` are deleted."""

    def plant(clean: Clean) -> None:
        {"images": clean.images, "labels": clean.labels}[part][name].unlink()

    return plant


def file(path: str, content: str) -> Plant:
    """A file, or more text at its end."""

    def plant(clean: Clean) -> None:
        target = clean.root / path
        before = target.read_text() if target.exists() else ""
        target.write_text(before + content)

    return plant


def renamed_class(number: int) -> Plant:
    """YOLO: all objects of a split's class get another number."""

    def plant(clean: Clean) -> None:
        for name, path in clean.labels.items():
            if name.startswith("v"):
                rows = path.read_text().splitlines()
                path.write_text("".join(f"{number}{r[1:]}\n" for r in rows))

    return plant


def many(times: int) -> Plant:
    """YOLO: one class far more often than the other in train, without two boxes at one place."""

    def plant(clean: Clean) -> None:
        for name, path in clean.labels.items():
            if name.startswith("t"):
                spots = [(x, y) for x in np.linspace(0.1, 0.9, times) for y in (0.2, 0.5, 0.8)]
                path.write_text(
                    "".join(f"0 {x:.4f} {y} 0.1 0.15\n" for x, y in spots)
                    + ("1 0.5 0.5 0.4 0.4\n" if name == "t0" else "")
                )

    return plant


def first_box(**values: float) -> str:
    """The first box as XML with other values."""
    x1, y1, x2, y2 = BOXES[0]
    box: dict[str, float] = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2} | values
    return "".join(f"<{key}>{value}</{key}>" for key, value in box.items())


def emptied(clean: Clean) -> None:
    """A label file without objects."""
    clean.labels["t1"].write_text("")


def listed(clean: Clean) -> None:
    """YOLO by lists of absolute paths, as Darknet has them; one line twice."""
    for split, names in (("train", ["t0", "t0", "t1"]), ("val", ["v0"])):
        rows = "".join(f"{clean.images[name].absolute()}\n" for name in names)
        (clean.root / f"{split}.txt").write_text(rows)
    yaml = clean.root / "data.yaml"
    content = yaml.read_text().replace("images/train", "train.txt").replace("images/val", "val.txt")
    yaml.write_text(content)


def path_of(clean: Clean, name: str) -> Path:
    """A shorthand for the table: "image t0", "labels t0", or a path below the set."""
    kind, _, rest = name.partition(" ")
    places = {"image": clean.images, "labels": clean.labels}
    return places[kind][rest] if kind in places else clean.root / name


def text_of(path: Path, old: str, new: str) -> None:
    """Another text in a file."""
    path.write_text(path.read_text().replace(old, new))
