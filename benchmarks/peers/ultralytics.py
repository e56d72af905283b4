"""Ultralytics as a process that answers questions (see `harness.Peer`).

A separate program under the AGPL: it is installed in an environment of its own and run through the
documented interface of its training and its callbacks; nothing of it is imported elsewhere. It is
kept from sending and downloading, and writes into a temporary folder only. Each answer has
`seconds` per unit and `count` units; MB are 10^6 bytes. The words, with their defaults:

versions()
transform(root, split="train", size=416, mosaic=True, seconds=5)
    Unit: `dataset[i]` of its training dataset with its default augmentation, positions in random
    order, one process: decoded, augmented, a uint8 tensor with its labels. `root`: a folder in
    VOC's layout; its boxes are written in YOLO's layout first. Also `cpu_seconds` per unit.
loader(root, split="train", batch=8, workers=2, size=416, mosaic=True, batches=30, skip=5)
    Unit: a sample of its training loader. The first `skip` batches aren't timed, but their memory
    counts. `start_mb` before, `pss_mb`, a look every 0.5 s, and `peak_pss_mb`: all processes.
train(root, split="train", val="val", size=320, batch=8, epochs=20, minutes=0, seed=1, workers=0,
      device="cpu", network="yolov3-tiny.yaml")
    Trains from scratch with its own defaults, `minutes` in the place of `epochs` if it isn't 0, and
    predicts the pictures of `val` with the weights of the last epoch. `root`: a folder in its own
    layout, `images/<split>`, `labels/<split>`, and `names` in data.yaml. `seconds` and
    `cpu_seconds` of all epochs: neither its start nor a validation is in them; `wall_seconds` of
    the whole call; `steps`, batches; `epochs`, `threads`; `detections`: for each picture, by file
    name, [x1, y1, x2, y2, score, class] in pixels of the picture.

Its networks have another head than YOLOv3's, so the data path and the accuracy are compared.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

from serving import looped, serve, watched_memory

sys.path.pop(0)  # this file's folder: the name of this file would hide the program

# Read while it is imported: nothing is sent, fetched or installed.
os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")

# Training and nothing else.
PLAIN = dict.fromkeys(("pretrained", "amp", "val", "plots", "verbose"), False)


class Folder:
    """Where everything is written; data sets in its layout are made once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[tuple[str, str], Path] = {}

    def data(self, root: str, split: str) -> Path:
        """A description of the split in its layout."""
        if (root, split) not in self._written:
            target = self.path / f"data{len(self._written)}"
            self._written[root, split] = write_yolo(Path(root).resolve(), split, target=target)
        return self._written[root, split]


def versions() -> dict[str, Any]:
    """What is measured."""
    return {f"{name} (peer)": version(name) for name in ("ultralytics", "torch")}


def transform(
    folder: Folder,
    root: str,
    split: str = "train",
    *,
    size: int = 416,
    mosaic: bool = True,
    seconds: float = 5,
) -> dict[str, Any]:
    """Samples of its training dataset, one after the other."""

    def sample(trainer: Any) -> dict[str, Any]:
        data = trainer.train_loader.dataset
        order = random.Random(0).choices(range(len(data)), k=10_000)
        for i in order[:50]:
            data[i]  # its buffer for mosaics fills
        return looped(lambda i: data[order[i % len(order)]], seconds=seconds)

    path = folder.data(root, split)
    return beginning_of_training(path, sample, size=size, mosaic=mosaic, batch=8, workers=0)


def loader(
    folder: Folder,
    root: str,
    split: str = "train",
    *,
    batch: int = 8,
    workers: int = 2,
    size: int = 416,
    mosaic: bool = True,
    batches: int = 30,
    skip: int = 5,
) -> dict[str, Any]:
    """Batches of its training loader; nothing is done with them."""

    def read(trainer: Any) -> dict[str, Any]:
        endless = (fields for _ in iter(int, 1) for fields in trainer.train_loader)
        for number, _ in enumerate(endless, 1):
            if number == skip:
                start = time.perf_counter()
            if number == skip + batches:
                break
        return {"seconds": time.perf_counter() - start}

    gc.collect()
    with watched_memory() as series:
        while not series:
            time.sleep(0.1)
        path = folder.data(root, split)
        wall = beginning_of_training(
            path, read, size=size, mosaic=mosaic, batch=batch, workers=workers
        )["seconds"]
    gc.collect()
    memory = {"start_mb": series[0], "peak_pss_mb": max(series), "pss_mb": series}
    return {"seconds": wall / (batches * batch), "count": batches * batch, **memory}


def train(
    folder: Folder,
    root: str,
    split: str = "train",
    val: str = "val",
    *,
    size: int = 320,
    batch: int = 8,
    epochs: int = 20,
    minutes: float = 0,
    seed: int = 1,
    workers: int = 0,
    device: str = "cpu",
    network: str = "yolov3-tiny.yaml",
) -> dict[str, Any]:
    """Train on one split, then say what is seen in the other."""
    import torch
    from ultralytics import YOLO

    threads = int(os.environ["OMP_NUM_THREADS"])
    clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    spent = dict.fromkeys(clocks, 0.0)
    counts = Counter(steps=0, epochs=0)

    def tick(sign: int) -> None:
        for name, clock in clocks.items():
            spent[name] += sign * clock()

    def end_epoch(trainer: Any) -> None:
        tick(1)
        counts.update(epochs=1)

    net = YOLO(network, task="detect")
    # it chooses a number of threads of its own
    net.add_callback("on_train_start", lambda _: torch.set_num_threads(threads))
    net.add_callback("on_train_epoch_start", lambda _: tick(-1))
    net.add_callback("on_train_batch_end", lambda _: counts.update(steps=1))
    net.add_callback("on_train_epoch_end", end_epoch)
    # What it validates, after the last epoch at least, are pictures that it trained on: it must
    # not choose by those that it is measured on.
    names = json.loads((Path(root) / "data.yaml").read_text())["names"]
    data = {"path": root, "train": f"images/{split}", "val": f"images/{split}", "names": names}
    description = folder.path / "train.yaml"
    description.write_text(json.dumps(data))  # JSON is YAML
    with TemporaryDirectory() as runs:
        start = time.perf_counter()
        net.train(
            data=str(description),
            epochs=epochs,
            time=minutes / 60 or None,
            imgsz=size,
            batch=batch,
            seed=seed,
            workers=workers,
            device=device,
            project=runs,
            **PLAIN,
        )
        wall = time.perf_counter() - start
        (last,) = Path(runs).rglob("last.pt")
        trained = YOLO(last)
        torch.set_num_threads(threads)
        detections: list[list[list[float]]] = []
        for path in sorted((Path(root) / "images" / val).iterdir()):
            (result,) = trained.predict(
                str(path), imgsz=size, conf=0.01, max_det=100, device=device, verbose=False
            )
            columns = (result.boxes.xyxy, result.boxes.conf[:, None], result.boxes.cls[:, None])
            detections.append(torch.cat(columns, 1).tolist())
    used = {"wall_seconds": wall, "threads": torch.get_num_threads()}
    return {**spent, **counts, **used, "detections": detections}


def beginning_of_training(
    data: Path,
    look: Callable[[Any], dict[str, Any]],
    *,
    size: int,
    mosaic: bool,
    batch: int,
    workers: int,
) -> dict[str, Any]:
    """What `look` finds out from its trainer, which a callback gets when training starts."""
    from ultralytics import YOLO

    found: dict[str, Any] = {}

    def begin(trainer: Any) -> None:
        found.update(look(trainer))
        raise EnoughError

    net = YOLO("yolov3-tiny.yaml", task="detect")
    net.add_callback("on_train_start", begin)
    with TemporaryDirectory() as runs, suppress(EnoughError):
        net.train(
            data=str(data),
            epochs=1,
            imgsz=size,
            batch=batch,
            mosaic=float(mosaic),
            close_mosaic=0,
            workers=workers,
            device="cpu",
            save=False,
            project=runs,
            **PLAIN,
        )
    return found


class EnoughError(Exception):
    """What was asked for is found out."""


def write_yolo(root: Path, split: str, *, target: Path) -> Path:
    """A split in VOC's layout once more in YOLO's, the pictures as links; its description."""
    for name in ("images", "labels"):
        (target / name).mkdir(parents=True)
    classes: dict[str, int] = {}
    for stem in (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
        tree = ElementTree.parse(root / "Annotations" / f"{stem}.xml")
        width, height = (float(tree.findtext(f"size/{side}", "0")) for side in ("width", "height"))
        rows: list[str] = []
        for item in tree.iter("object"):
            number = classes.setdefault(item.findtext("name", "").strip().lower(), len(classes))
            corners = ("xmin", "ymin", "xmax", "ymax")
            x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{each}", "0")) for each in corners)
            centre = f"{(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height}"
            if x1 < x2 and y1 < y2:
                rows.append(f"{number} {centre} {(x2 - x1) / width} {(y2 - y1) / height}")
        (target / "labels" / f"{stem}.txt").write_text("\n".join(rows))
        (target / "images" / f"{stem}.jpg").symlink_to(root / "JPEGImages" / f"{stem}.jpg")
    description = {"path": str(target), "train": "images", "val": "images", "names": [*classes]}
    path = target / "data.yaml"
    path.write_text(json.dumps(description))  # JSON is YAML
    return path


def main() -> None:
    """Answer until the pipe is closed."""
    with TemporaryDirectory() as name:
        os.environ["YOLO_CONFIG_DIR"] = name
        os.chdir(name)
        from ultralytics import YOLO, settings  # the first imports torch and torchvision

        assert YOLO, "what every task needs is there"
        settings.update({"sync": False})
        folder = Folder(Path(name))
        bound = {task.__name__: partial(task, folder) for task in (transform, loader, train)}
        serve({"versions": versions, **bound})


if __name__ == "__main__":
    main()
