"""How opening a COCO set grows with the number of pictures: seconds, bytes, memory.

    python benchmarks/index_scale.py [--images 10000 100000 1000000] [--boxes 8] [--files 256]

The annotation file is synthetic: N entries with `--boxes` boxes each. Its pictures are `--files`
small JPEGs that the entries name again and again, so that the disk holds a few MB, not 100 GB: what
is measured is our work and the system calls, not the disk. Each measurement is a process of its
own; its peak RSS is what it needs above a process that has only imported triscale.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from triscale.data.augment import AugmentConfig
from triscale.data.coco import scan_coco
from triscale.data.index import Index, PackedStrings
from triscale.data.json_stream import read_lists
from triscale.data.loader import make_loader
from triscale.data.open import open_dataset
from triscale.data.options import DataConfig
from triscale.data.plan import Plan, PlanSampler

SIDE = 64  # of the pictures
BATCH = 64
CONFIG = DataConfig(train="train", skip_bad=True)


def write_set(root: Path, num_images: int, boxes: int, files: int) -> Path:
    """The annotation file of a set of `num_images` pictures under `root`, written as it goes."""
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    rng = np.random.default_rng(0)
    for i in range(files):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(root / "train" / f"{i:012}.jpg")
    path = root / "annotations" / "instances_train.json"
    with path.open("w") as file:
        file.write('{"info": {"description": "synthetic"}, "licenses": [], "images": [')
        for i in range(num_images):
            name = f"{i % files:012}.jpg"
            entry = {"id": i + 1, "file_name": name, "width": SIDE, "height": SIDE, "license": 1}
            file.write(", " * bool(i) + json.dumps(entry))
        file.write('], "annotations": [')
        for i in range(num_images * boxes):
            x, y, w, h = (rng.random(4) * (SIDE / 2 - 2) + (0, 0, 1, 1)).round(2).tolist()
            image = i * 7919 % num_images + 1  # not in the order of the pictures
            entry = {"id": i + 1, "image_id": image, "category_id": i % 80 + 1, "iscrowd": 0}
            file.write(", " * bool(i) + json.dumps({**entry, "bbox": [x, y, w, h], "area": w * h}))
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return path


def opened(root: Path) -> Index:
    index = open_dataset(root, CONFIG, splits=("train",)).train
    assert index is not None
    return index


def stream(root: Path) -> None:
    """Only the JSON: every entry decoded and dropped."""
    keys = ("images", "annotations", "categories")
    path = root / "annotations" / "instances_train.json"
    for _ in read_lists(path, keys, what="a COCO annotation file"):
        pass


def scan(root: Path) -> None:
    """JSON, rows, the pictures' headers; without the judgement and the cache."""
    file = root / "annotations" / "instances_train.json"
    scan_coco(file, root / "train", CONFIG, evaluation=False)


def split(index: Index) -> None:
    """Half of the pictures."""
    index.select(np.arange(0, len(index), 2))


def iterate(index: Index) -> None:
    """The objects of every picture."""
    total = 0
    for image in range(len(index)):
        total += len(index.boxes[index.objects(image)])
    assert total == len(index.boxes)


def names(index: Index) -> None:
    """Every path."""
    assert sum(1 for _ in index.paths) == len(index)


def draws(index: Index) -> None:
    """The draws of one epoch, mixup on."""
    config = AugmentConfig(mixup=True)
    plan = Plan(len(index), BATCH, 1, seed=0, size=416, augment=config)
    assert sum(len(plan.draws(step)) for step in range(plan.steps)) == plan.steps * BATCH


def loader(index: Index) -> None:
    """Two workers started, and one batch of each."""
    config = AugmentConfig()
    plan = Plan(len(index), BATCH, 1, seed=0, size=64, augment=config)
    batches = PlanSampler(plan, start=0, stop=min(4, plan.steps))
    for _ in make_loader(index, batches, config=config, workers=2):
        pass


# Those of the first group get the folder, those of the second the index, opened from the cache.
OF_FOLDER: dict[str, Callable[[Path], object]] = {
    "start": lambda _: None,
    "stream": stream,
    "scan": scan,
    "open cold": opened,
    "open cached": opened,
}
OF_INDEX: dict[str, Callable[[Index], None]] = {
    "split": split,
    "iterate": iterate,
    "paths": names,
    "draws": draws,
    "loader": loader,
}


def bytes_of(index: Index) -> int:
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    strings = [value for value in vars(index).values() if isinstance(value, PackedStrings)]
    return sum(a.nbytes for a in arrays) + sum(s.data.nbytes + s.ends.nbytes for s in strings)


def measure(name: str, root: Path) -> dict[str, float]:
    """In this process: seconds, those of the processor, and the peak of the RSS in bytes."""
    index = opened(root) if name in OF_INDEX else None
    start, cpu = time.perf_counter(), time.process_time()
    made = OF_FOLDER[name](root) if index is None else OF_INDEX[name](index)
    result = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    if isinstance(made, Index):
        result["bytes"] = bytes_of(made)
    return {**result, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def in_subprocess(name: str, root: Path) -> dict[str, float]:
    words = [sys.executable, __file__, "--measure", name, str(root)]
    environment = {**os.environ, "TRISCALE_CACHE": str(root / "cache")}
    output = subprocess.run(words, env=environment, check=True, capture_output=True).stdout
    return json.loads(output)


def run(num_images: int, boxes: int, files: int) -> None:
    """The table of one size."""
    root = Path(tempfile.mkdtemp(prefix="index-scale-"))
    try:
        size = write_set(root, num_images, boxes, files).stat().st_size
        print(f"\n{num_images:,} images, {num_images * boxes:,} boxes, ", end="")
        print(f"{size / 1e6:,.1f} MB of JSON, {files} files for the pictures")
        print(f"{'':12} {'s':>8} {'CPU s':>8} {'us/image':>9} {'peak MB':>8} {'above start':>11}")
        start = 0.0
        for name in (*OF_FOLDER, *OF_INDEX):
            found = in_subprocess(name, root)
            start = start or found["peak"]
            print(
                f"{name:12} {found['seconds']:8.2f} {found['cpu']:8.2f} "
                f"{found['seconds'] / num_images * 1e6:9.2f} {found['peak'] / 1e6:8.0f} "
                f"{(found['peak'] - start) / 1e6:11.0f}",
                flush=True,
            )
            if name == "open cached":
                on_disk = sum(f.stat().st_size for f in (root / "cache").rglob("*.npy"))
                each = found["bytes"] / num_images
                print(
                    f"{'':12} index {found['bytes'] / 1e6:.1f} MB = {each:.1f} bytes/image, ",
                    end="",
                )
                print(f"cache entry {on_disk / 1e6:.1f} MB")
    finally:
        shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--boxes", type=int, default=8)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    for num_images in arguments.images:
        run(num_images, arguments.boxes, arguments.files)


if __name__ == "__main__":
    main()
