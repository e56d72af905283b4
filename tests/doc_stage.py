"""What the documents' commands and snippets need to run: small things under the names they use.

A name in a document ("VOCdevkit", "runs/mine", "yolov3-tiny.weights", "street.jpg") stands for the
reader's data, weights and pictures. `Stage` puts small ones there: drawn pictures with two classes
that VOC and COCO both have, and untrained networks.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import torch

from triscale.config import to_dict
from triscale.data.index import Index
from triscale.data.options import DataConfig
from triscale.data.voc import VOC_CLASSES, read_voc
from triscale.demo.scenes import CLASSES, write_scenes
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import InputConfig
from triscale.weights.contents import WeightsInfo
from triscale.weights.formats import convert, files_of
from triscale.weights.native import save_weights
from triscale.weights.zoo import ZOO, stem_of

NAMES = ("bird", "boat")
TINY, SMALL = "tiny", "mobilenet0.25"  # Darknet's formats know the first, GluonCV's the second
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIDEOS = (".mp4", ".avi", ".mkv")
WEIGHTS = (".safetensors", ".params", ".weights")


class Stage:
    """A folder to run a page in; `make` says what is needed under which name."""

    def __init__(self, folder: Path, *, store: Path, run: Callable[[], Path]) -> None:
        self.folder, self.store = folder, store
        self.run = run  # the folder of a finished run
        self.devkit = store / "VOCdevkit"

    def make(self, name: str, role: str) -> None:
        """What `name` stands for as "data", "weights", "run", "pictures" or "file", if absent."""
        path = self.folder / name
        if path.exists():
            return
        if name in ZOO:
            path = self.folder / ".cache" / "triscale" / f"{stem_of(name)}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if role == "data":
            self._data(path)
        elif role == "weights":
            self._weights(path)
        elif role == "run":
            shutil.copytree(self.run(), path)
        elif role == "pictures":
            self._pictures(path)
        elif path.suffix == ".names":
            path.write_text("\n".join(VOC_CLASSES))
        elif path.suffix == ".cfg":
            self.make(str(path.with_suffix(".weights")), "weights")
        else:
            raise AssertionError(f"{name}: no stand-in for a file of this kind")

    def _data(self, path: Path) -> None:
        if path.suffix == ".yaml":  # boxes/data.yaml
            write_yolo(path.parent, self.devkit, names=True)
        elif "coco" in path.name:
            write_coco(path, self.devkit)
        else:
            shutil.copytree(self.devkit, path)

    def _weights(self, path: Path) -> None:
        folder = not path.suffix or path.suffix not in WEIGHTS
        backbone = TINY if folder or path.suffix == ".weights" else SMALL
        source = self.store / f"{backbone}.safetensors"
        if not source.exists():
            write_weights(source, backbone)
        if folder:
            path.mkdir(exist_ok=True)
        target = path / "best.safetensors" if folder else path
        if target.suffix == ".safetensors":
            shutil.copy(source, target)
            return
        made = self.store / f"{backbone}{target.suffix}"
        if not made.exists():
            convert(source, made)
        for there, here in zip(files_of(made), files_of(target), strict=True):
            shutil.copy(there, here)

    def _pictures(self, path: Path) -> None:
        drawn = sorted(self.devkit.glob("VOC2007/JPEGImages/*.jpg"))
        if "*" in path.name:  # a pattern
            path = path.with_name(path.name.replace("*", "a"))
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in VIDEOS:
            _write_video(path, drawn)
        elif path.suffix not in PICTURES:
            path.mkdir()
            for picture in drawn[:2]:
                shutil.copy(picture, path)
        else:  # the content decides, not the name
            shutil.copy(drawn[0], path)


def _write_video(path: Path, pictures: list[Path]) -> None:
    """Each picture for a frame."""
    frames = [cv2.imread(str(picture)) for picture in pictures]
    height, width = frames[0].shape[:2]
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), codec, 5, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def write_devkit(root: Path) -> None:
    """A drawn VOC devkit with 10 + 4 pictures, for both years."""
    write_scenes(root, num_train=10, num_test=4, size=(96, 128))
    alike = {name: NAMES[i % len(NAMES)] for i, name in enumerate(CLASSES)}
    for file in root.glob("VOC2007/Annotations/*.xml"):
        text = file.read_text()
        file.write_text(re.sub(r"<name>(\w+)", lambda found: f"<name>{alike[found[1]]}", text))
    shutil.copytree(root / "VOC2007", root / "VOC2012")


def write_weights(path: Path, backbone: str) -> None:
    """An untrained network with VOC's classes, at 64 pixels, so that everything is fast."""
    config = ModelConfig(backbone=backbone)
    model = build_model(config, len(VOC_CLASSES), generator=torch.Generator().manual_seed(0))
    info = WeightsInfo(VOC_CLASSES, config, 64, InputConfig(), {})
    assert to_dict(info.input)["fit"] == "stretch"
    save_weights(path, model, info)


def write_coco(root: Path, devkit: Path, *, names: tuple[str, ...] = NAMES, plain=False) -> None:
    """The same in COCO's layout, or with `plain` in folders called labels and pictures."""
    (root / ("labels" if plain else "annotations")).mkdir(parents=True, exist_ok=True)
    for split, index in _splits(devkit).items():
        pictures = root / ("pictures" if plain else f"{split}2017")
        pictures.mkdir(exist_ok=True)
        images, annotations = [], []
        for i in range(len(index)):
            file = shutil.copy(index.paths[i], pictures)
            height, width = index.sizes[i].tolist()
            entry = {"id": i, "file_name": Path(file).name, "height": height, "width": width}
            images.append(entry)
            for k in range(index.offsets[i], index.offsets[i + 1]):
                x1, y1, x2, y2 = index.boxes[k].tolist()
                box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
                label = _label(index, k)
                row = {"id": k, "image_id": i, "category_id": label, "bbox": box, "area": area}
                annotations.append({**row, "iscrowd": 0})
        categories = [{"id": i, "name": name} for i, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        name = f"labels/{split}.json" if plain else f"annotations/instances_{split}2017.json"
        (root / name).write_text(json.dumps(content))


def write_yolo(root: Path, devkit: Path, *, names: bool = False, flat: bool = False) -> None:
    """The same in YOLO's layout; `flat`: without parts; `names`: with data.yaml."""
    for split, index in _splits(devkit).items():
        part = "" if flat else split
        for folder in ("images", "labels"):
            (root / folder / part).mkdir(parents=True, exist_ok=True)
        for i in range(len(index)):
            file = Path(shutil.copy(index.paths[i], root / "images" / part))
            height, width = index.sizes[i].tolist()
            lines = []
            for k in range(index.offsets[i], index.offsets[i + 1]):
                x1, y1, x2, y2 = index.boxes[k].tolist()
                centre = f"{(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f}"
                size = f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}"
                lines.append(f"{_label(index, k)} {centre} {size}")
            (root / "labels" / part / f"{file.stem}.txt").write_text("\n".join(lines))
    if names:
        text = f"train: images/train\nval: images/val\nnames: [{', '.join(NAMES)}]\n"
        (root / "data.yaml").write_text(text)


def _splits(devkit: Path) -> dict[str, Index]:
    config = DataConfig()
    return {
        name: read_voc(devkit, split, config).index
        for name, split in (("train", "2007_trainval"), ("val", "2007_test"))
    }


def _label(index: Index, k: int) -> int:
    return NAMES.index(index.classes[int(index.labels[k])])
