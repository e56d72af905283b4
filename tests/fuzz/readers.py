"""A small valid input for each reader, how it is opened, and what must hold of any answer.

The number of labels in a file is counted by other means than the reader's own: ElementTree's whole
parser, json.loads, lines that aren't blank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image

from triscale.checkpoint import State, load_state, save_state
from triscale.config import to_dict
from triscale.data.index import Index
from triscale.data.open import Data, open_dataset
from triscale.data.options import DataConfig
from triscale.data.pictures import picture_size, read_picture
from triscale.recipe import Recipe, dump_recipe, load_recipe

VOC_LISTS = {"trainval": b"a\nb\n", "test": b"b  1\na  0\n"}
WEIGHTS = {step: torch.arange(6.0).reshape(2, 3) + step for step in (3, 7)}


class Reader(NamedTuple):
    """What a fuzz test needs to know of a reader."""

    make: Callable[[Path], None]  # the valid input, in an empty folder
    open: Callable[[Path, bool], Any]  # from that folder; whether broken labels may be skipped
    check: Callable[[Path, Any], None]  # asserts what must hold of the answer


def check_index(index: Index) -> None:
    n, m = len(index.paths), len(index.boxes)
    assert len(index.ids) == len(index.sizes) == n == len(index.offsets) - 1
    assert index.offsets[0] == 0
    assert index.offsets[-1] == m == len(index.labels) == len(index.areas)
    assert (np.diff(index.offsets) >= 0).all()
    assert (index.sizes > 0).all()
    limits = np.repeat(index.sizes, np.diff(index.offsets), axis=0)[:, [1, 0, 1, 0]]
    assert np.isfinite(index.boxes).all()
    assert (index.boxes >= 0).all()
    assert (index.boxes <= limits).all()
    assert (index.boxes[:, :2] < index.boxes[:, 2:]).all()
    assert ((index.labels >= 0) & (index.labels < len(index.classes))).all()
    assert np.isfinite(index.areas).all()


def reported(lines: tuple[str, ...], item: str) -> int:
    """How many objects the skipped lines speak of."""
    about = [line for line in lines if re.search(f": {item} (number )?-?\\d+", line)]
    more = [re.search(r"\(and (\d+) more of this class\)$", line) for line in about]
    return len(about) + sum(int(match[1]) for match in more if match)


def indices(data: Data) -> list[Index]:
    found = [index for index in (data.train, data.val) if index is not None]
    for index in found:
        check_index(index)
    return found


def make_voc(root: Path) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    box = "<bndbox>\n<xmin>{}</xmin>\n<ymin>2</ymin>\n<xmax>30</xmax>\n<ymax>20.5</ymax>\n</bndbox>"
    for number, name in enumerate(("a", "b")):
        objects = "".join(
            f"<object>\n<name>{label}</name>\n<difficult>{number}</difficult>\n"
            f"{box.format(number + 1)}\n</object>\n"
            for label in ("dog", "cat", "zebra")
        )
        (root / "Annotations" / f"{name}.xml").write_text(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n'
            f"<filename>{name}.jpg</filename>\n<size>\n<width>40</width>\n<height>30</height>\n<depth>3</depth>\n</size>\n{objects}"
            "</annotation>\n"
        )
        suffix = (".jpg", ".png")[number]
        Image.new("RGB", (40, 30), (9, 99, 200)).save(root / "JPEGImages" / (name + suffix))
    for split, listed in VOC_LISTS.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_bytes(listed)


def check_voc(root: Path, data: Data) -> None:
    objects = kept = 0
    used: set[str] = set()
    for index in indices(data):
        used.update(f"{root}/Annotations/{name}.xml" for name in index.ids)
        kept += len(index.boxes)
        for name in index.ids:
            text = (root / "Annotations" / f"{name}.xml").read_bytes()
            objects += len(ElementTree.fromstring(text).findall("object"))
        listed = (root / "ImageSets/Main" / f"{index.name}.txt").read_bytes()
        spoken = {Path(line.split(": ")[0]).stem for line in data.skipped}
        assert listed not in VOC_LISTS.values() or set(index.ids) | spoken >= {"a", "b"}
    # of a file that is refused as a whole, single objects may be spoken of besides
    lines = tuple(line for line in data.skipped if line.split(": ")[0] in used)
    assert objects == kept + reported(lines, "object")
    assert not any("\n" in line for line in data.skipped)


def make_coco(root: Path) -> None:
    (root / "annotations").mkdir()
    (root / "images").mkdir()
    images, annotations = [], []
    for number, name in enumerate(("a.jpg", "b.png"), 1):
        Image.new("RGB", (40, 30), (9, 99, 200)).save(root / "images" / name)
        images.append({"id": number, "file_name": name, "width": 40, "height": 30})
        for category in (1, 5, 90):
            box = [category / 10, 2, 20.5, 10]
            annotations.append(
                {"id": 10 * number + category, "image_id": number, "category_id": category}
                | {"bbox": box, "area": 205.0, "iscrowd": int(category == 90)}
            )
    categories = [{"id": key, "name": name} for key, name in ((1, "dog"), (5, "cat"), (90, "x"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content, indent=0))


def check_coco(root: Path, data: Data) -> None:
    indices(data)
    assert data.val is not None
    content = json.loads((root / "annotations/instances_val.json").read_bytes())
    pictures = set(data.val.ids)
    entries = [entry for entry in content["annotations"] if isinstance(entry, dict)]
    mine = [entry for entry in entries if str(entry.get("image_id")) in pictures]
    assert len(mine) <= len(data.val.boxes) + reported(data.skipped, "annotation")


def make_yolo(root: Path) -> None:
    rows = "0 0.5 0.5 0.25 0.5\n1 .25 .25 .1 .2\n2 .1 .1 .9 .1 .9 .9 .2 .8\n"
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (40, 30), (9, 99, 200)).save(root / "images/train" / name)
        (root / "labels/train" / name).with_suffix(".txt").write_text(rows)
    (root / "val.txt").write_text("images/train/b.png\n./images/train/a.jpg\n")
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: val.txt\nnc: 3\nnames:\n  0: dog\n  1: cat\n  2: x\n"
    )


def check_yolo(root: Path, data: Data) -> None:
    rows = kept = 0
    for index in indices(data):
        kept += len(index.boxes)
        for path in index.paths:
            labels = Path(path.replace("/images/", "/labels/")).with_suffix(".txt")
            text = labels.read_text(encoding="utf-8-sig") if labels.is_file() else ""
            rows += sum(bool(line.strip()) for line in text.splitlines())
    assert rows == kept + reported(data.skipped, "line")
    assert not any("\n" in line for line in data.skipped)


def make_data_file(root: Path) -> None:
    make_voc(root)
    (root / "data.toml").write_text(
        'format = "voc"\nroot = "."\ntrain = "trainval"\nval = "test"\n'
        'classes = ["dog", "cat", "zebra"]\ntrain_images = ""\n'
    )


def check_data_file(root: Path, data: Data) -> None:
    indices(data)
    assert data.classes


def make_pictures(root: Path) -> None:
    y, x = np.mgrid[0:20, 0:30]
    pixels = np.stack([12 * y, 8 * x, 255 - 8 * x], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "bmp", "webp", "tif"):
        options = {} if suffix == "bmp" else {"exif": exif}
        Image.fromarray(pixels).save(root / f"a.{suffix}", **options)


def open_pictures(root: Path, skip: bool) -> dict[Path, Any]:
    return {path: read_picture(path) for path in sorted(root.iterdir())}


def check_pictures(root: Path, pictures: dict[Path, Any]) -> None:
    for path, pixels in pictures.items():
        assert pixels.dtype == np.uint8
        assert pixels.shape == (*picture_size(path), 3)


def make_recipe(root: Path) -> None:
    text = dump_recipe(load_recipe("bof"))
    (root / "recipe.toml").write_text(text)


def check_recipe(root: Path, recipe: Recipe) -> None:
    def floats(value: Any) -> list[float]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [number for child in value for number in floats(child)]
        return [value] if isinstance(value, float) else []

    assert all(map(math.isfinite, floats(to_dict(recipe))))
    (root / "again.toml").write_text(dump_recipe(recipe))
    assert load_recipe(root / "again.toml") == recipe


def make_state(root: Path) -> None:
    for step, weights in WEIGHTS.items():
        values = {"best": 0.5, "meters": [1.5, 2.5], "data": {"train": "00ff"}}
        save_state(root / "last", State(step, {"model.a": weights}, values), keep=2)


def check_state(root: Path, answer: tuple[State, list[str]]) -> None:
    state, damaged = answer
    assert 0 <= state.step < 2**63
    assert list(state.tensors) == ["model.a"]
    assert any(torch.equal(state.tensors["model.a"], weights) for weights in WEIGHTS.values())
    newest = torch.equal(state.tensors["model.a"], WEIGHTS[7])
    present = {path.name for path in (root / "last").glob("step-00000007.*")}
    assert newest or damaged or len(present) < 2


def _open(name: str) -> Callable[[Path, bool], Data]:
    return lambda root, skip: open_dataset(root / name, DataConfig(skip_bad=skip))


READERS = {
    "voc": Reader(make_voc, _open("."), check_voc),
    "coco": Reader(make_coco, _open("."), check_coco),
    "yolo": Reader(make_yolo, _open("."), check_yolo),
    "pictures": Reader(make_pictures, open_pictures, check_pictures),
    "data file": Reader(make_data_file, _open("data.toml"), check_data_file),
    "recipe": Reader(make_recipe, lambda root, _: load_recipe(root / "recipe.toml"), check_recipe),
    "state": Reader(make_state, lambda root, _: load_state(root / "last"), check_state),
}
