"""GluonCV on MXNet as a process that answers questions (see `harness.Peer`).

The code paths are those of its own script, scripts/detection/yolo/train_yolo3.py: its dataset, its
transform with the network (so targets are made in the loader), its loader, its step, its network
with suppression, its metric. Weights and most inputs are drawn: they don't change the speed. MXNet
works behind the caller's back: every measurement ends by waiting for the results. Each answer has
`seconds` per unit and `count` units; MB are 10^6 bytes. The words, with their defaults:

versions()
transform(seconds=5, size=416, decode=True, targets=True, root=None, split="train",
        pictures=None, annotations=None)
    Unit: a sample through YOLO3DefaultTrainTransform. `size`: a number, or a list of which each
    sample takes a random one. decode=False: the pictures (64 at most) are read before. From `root`,
    a folder with Annotations, ImageSets and JPEGImages; or from `pictures`, paths, with
    `annotations`, an .npz: images (n,) position in `pictures`, boxes (n, 4), labels (n,). Also
    `cpu_seconds` per unit: it uses more than one thread.
loader(root, split="train", batch=8, workers=2, sizes=[320, 352, .. 608], batches=30, skip=5,
        targets=True)
    Unit: a sample of RandomTransformDataLoader with the script's batchify, another size every 10
    batches. The first `skip` batches aren't timed, but their memory counts. `start_mb` before the
    loader is made, `pss_mb`, a look every 0.5 s, and `peak_pss_mb`: this process with its workers.
    MXNet gives little back and grows for many batches: ask for memory first, of a fresh process.
step(network, batch, size=416, steps=3, classes=20)
    Unit: a step (forward with losses, backward, SGD, the four metrics) of the hybridized network on
    a made-up batch with targets from its own generator; one more before the clock starts. Also
    `peak_rss_mb` of the process in this task.
inference(network, batch, size=416, runs=5, from_picture=False, candidates="few", static=False,
        classes=20)
    Unit: a call net(x) with its suppression, results fetched; one more before the clock starts.
    from_picture: from decoded uint8 pictures of 640x480, its validation transform included.
    candidates: how many scores pass its threshold of 0.01, a "few" hundred or nearly "all". static:
    hybridized with static_alloc and static_shape, which its script doesn't do.
voc07(path, num_classes, batch=1, numpy=False)
    Unit: the whole metric, update and get. `path`: an .npz with det_images, det_boxes, det_scores,
    det_labels, gt_images, gt_boxes, gt_labels, gt_difficult. It gets padded arrays, MXNet's or
    numpy's, of `batch` pictures each, which are made before the clock starts. Also `map`.

`network`: darknet53, mobilenet1.0 or mobilenet0.25. The last one stays between calls.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serving import forget_peak, looped, peak_mb, serve, watched_memory

sys.path.pop(0)  # this file's folder: the name of this file would hide the program

import mxnet as mx
import numpy as np
from gluoncv.data import VOCDetection
from gluoncv.data.batchify import Pad, Stack, Tuple
from gluoncv.data.dataloader import RandomTransformDataLoader
from gluoncv.data.transforms.presets.yolo import YOLO3DefaultTrainTransform as TrainTransform
from gluoncv.data.transforms.presets.yolo import YOLO3DefaultValTransform as ValTransform
from gluoncv.model_zoo import get_model
from gluoncv.utils.metrics.voc_detection import VOC07MApMetric
from gluoncv.utils.random import seed
from mxnet import autograd, gluon

SIZES = tuple(range(320, 609, 32))
HELD = 64  # decoded pictures in memory
GROUP = 8  # samples between two waits: it may work ahead, as in a loader
BOXES = 8  # in a made-up picture
TERMS = ("ObjLoss", "BoxCenterLoss", "BoxScaleLoss", "ClassLoss")


class Held:
    """What the last question about a network needed; gone before the next is built."""

    def __init__(self) -> None:
        self._key: object = None
        self._value: Any = None

    def get(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` returns, or returned before for the same key."""
        if key != self._key:
            self._key = self._value = None
            gc.collect()
            self._key, self._value = key, make()
        return self._value


def versions() -> dict[str, Any]:
    """What is measured."""
    return {name: version(name) for name in ("gluoncv", "mxnet")}


def transform(
    seconds: float = 5,
    size: int | Sequence[int] = 416,
    *,
    decode: bool = True,
    targets: bool = True,
    root: str = "",
    split: str = "train",
    pictures: Sequence[str] = (),
    annotations: str = "",
) -> dict[str, Any]:
    """Samples through the training transform, one after the other."""
    data = voc(root, split) if root else listed(pictures, annotations)
    transforms = train_transforms([size] if isinstance(size, int) else size, targets=targets)
    held = [] if decode else [data[i] for i in range(min(HELD, len(data)))]

    def work(group: int) -> None:
        outputs = []
        for number in range(group * GROUP, (group + 1) * GROUP):
            image, label = held[number % len(held)] if held else data[number % len(data)]
            outputs.append(random.choice(transforms)(image, label.copy()))
        mx.nd.waitall()

    return looped(work, seconds=seconds, group=GROUP)


def loader(
    root: str,
    split: str = "train",
    *,
    batch: int = 8,
    workers: int = 2,
    sizes: Sequence[int] = SIZES,
    batches: int = 30,
    skip: int = 5,
    targets: bool = True,
) -> dict[str, Any]:
    """Batches as the script's training loop gets them; nothing is done with them."""
    gc.collect()
    with watched_memory() as series:
        while not series:
            time.sleep(0.1)
        batchify = Tuple(*[Stack() for _ in range(6 if targets else 1)], Pad(axis=0, pad_val=-1))
        data = RandomTransformDataLoader(
            train_transforms(sizes, targets=targets),
            voc(root, split),
            interval=10,
            batch_size=batch,
            shuffle=True,
            last_batch="rollover",
            batchify_fn=batchify,
            num_workers=workers,
        )
        endless = (fields for _ in iter(int, 1) for fields in data)
        for number, fields in enumerate(endless):
            for field in fields:
                field.wait_to_read()
            if number == skip - 1:
                start = time.perf_counter()
            if number == skip + batches - 1:
                break
        wall = time.perf_counter() - start
        del endless, data
    memory = {"start_mb": series[0], "peak_pss_mb": max(series), "pss_mb": series}
    return {"seconds": wall / (batches * batch), "count": batches * batch, **memory}


def step(
    held: Held, network: str, batch: int, *, size: int = 416, steps: int = 3, classes: int = 20
) -> dict[str, Any]:
    """Training steps as the script takes them, all on one batch."""
    forget_peak()
    key = ("step", network, batch, size, classes)
    one = held.get(key, lambda: training(network, batch, size=size, classes=classes))
    return {**looped(one, count=steps), "peak_rss_mb": peak_mb()}


def inference(
    held: Held,
    network: str,
    batch: int,
    *,
    size: int = 416,
    runs: int = 5,
    from_picture: bool = False,
    candidates: str = "few",
    static: bool = False,
    classes: int = 20,
) -> dict[str, Any]:
    """Detections of a batch, again and again."""
    key = ("inference", network, candidates, static, classes)
    net = held.get(
        key, lambda: predicting(network, candidates=candidates, static=static, classes=classes)
    )
    shape = (480, 640, 3)
    pictures = [mx.nd.random.uniform(0, 255, shape).astype("uint8") for _ in range(batch)]
    prepare = ValTransform(size, size)
    label = np.zeros((1, 6), "float32")
    x = mx.nd.random.normal(shape=(batch, 3, size, size))
    mx.nd.waitall()

    def one(_: int) -> None:
        prepared = [prepare(each, label)[0] for each in pictures] if from_picture else None
        for output in net(mx.nd.stack(*prepared) if prepared else x):
            output.asnumpy()

    return looped(one, count=runs)


def voc07(path: str, num_classes: int, *, batch: int = 1, numpy: bool = False) -> dict[str, Any]:
    """The metric on detections and truth of a whole split."""
    with np.load(path) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    count = 1 + max(int(found[f"{side}_images"].max(initial=-1)) for side in ("det", "gt"))
    columns = ["det_boxes", "det_labels", "det_scores", "gt_boxes", "gt_labels", "gt_difficult"]
    fields = [
        padded(found[column], found[f"{column.split('_')[0]}_images"], count=count)
        for column in columns
    ]
    convert = (lambda a: a) if numpy else mx.nd.array
    updates = [
        [[convert(field[first : first + batch])] for field in fields]
        for first in range(0, count, batch)
    ]
    mx.nd.waitall()
    metric = VOC07MApMetric(iou_thresh=0.5, class_names=[str(i) for i in range(num_classes)])
    start = time.perf_counter()
    for update in updates:
        metric.update(*update)
    _, values = metric.get()
    return {"seconds": time.perf_counter() - start, "count": 1, "map": float(values[-1])}


def voc(root: str, split: str) -> VOCDetection:
    """A folder in VOC's layout through its dataset; class numbers follow the sorted names."""
    folder = Path(root).resolve()
    names = {
        line.split("<name>")[1].split("</name>")[0].strip().lower()
        for path in (folder / "Annotations").glob("*.xml")
        for line in path.read_text().splitlines()
        if "<name>" in line and "</name>" in line
    }
    kind = type("Pictures", (VOCDetection,), {"CLASSES": tuple(sorted(names))})
    return kind(root=str(folder.parent), splits=[(folder.name, split)])


def listed(pictures: Sequence[str], annotations: str) -> gluon.data.Dataset:
    """Pictures that are named, with boxes of a file, as rows of its dataset."""
    with np.load(annotations) as arrays:
        rows = [arrays["boxes"], arrays["labels"][:, None], 0 * arrays["labels"][:, None]]
        table, images = np.concatenate(rows, axis=1).astype("float64"), arrays["images"]
    labels = [table[images == number] for number in range(len(pictures))]
    files = gluon.data.SimpleDataset(list(zip(pictures, labels, strict=True)))
    return files.transform(lambda path, label: (mx.image.imread(path, 1), label))


def train_transforms(sizes: Sequence[int], *, targets: bool) -> list[Any]:
    """One for each size; with targets each asks a network of 20 classes for its maps."""
    net = build("mobilenet0.25", 20) if targets else None
    return [TrainTransform(side, side, net) for side in sizes]


def build(network: str, classes: int) -> Any:
    """The network with drawn weights, which keep the size of a signal from layer to layer."""
    names = [str(i) for i in range(classes)]
    net = get_model(f"yolo3_{network}_custom", classes=names, pretrained_base=False)
    net.initialize(mx.init.MSRAPrelu(), force_reinit=True)
    return net


def training(network: str, batch: int, *, size: int, classes: int) -> Callable[[int], None]:
    """A training step with all that it needs."""
    net = build(network, classes)
    optimiser = {"learning_rate": 1e-5, "wd": 5e-4, "momentum": 0.9}
    trainer = gluon.Trainer(net.collect_params(), "sgd", optimiser, kvstore="local")
    metrics = [mx.metric.Loss(name) for name in TERMS]
    transform = TrainTransform(size, size, net)
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 0.7 * size, (batch, BOXES, 2))
    sides = draw.uniform(0.05 * size, 0.3 * size, (batch, BOXES, 2))
    boxes = mx.nd.array(np.concatenate([corners, corners + sides], axis=2))
    labels = mx.nd.array(draw.integers(0, classes, (batch, BOXES, 1)))
    fixed = transform._target_generator(
        *(transform._fake_x, transform._feat_maps, transform._anchors, transform._offsets),
        *(boxes, labels, None),
    )
    net.hybridize()
    x = mx.nd.random.normal(shape=(batch, 3, size, size))
    mx.nd.waitall()

    def one(_: int) -> None:
        with autograd.record():
            losses = net(x, boxes, *fixed)
            total = losses[0] + losses[1] + losses[2] + losses[3]
            autograd.backward([total])
        trainer.step(batch)
        for metric, loss in zip(metrics, losses, strict=True):
            metric.update(0, [loss])
        mx.nd.waitall()

    return one


def predicting(network: str, *, candidates: str, static: bool, classes: int) -> Any:
    """The network for inference; its logits spread by about 1 around what `candidates` asks for."""
    net = build(network, classes)
    inputs: list[Any] = []
    hooks = [
        output.register_forward_hook(lambda _, given, __: inputs.append(given[0]))
        for output in net.yolo_outputs
    ]
    net(mx.nd.random.normal(shape=(1, 3, 224, 224)))
    for output, hook, given in zip(net.yolo_outputs, hooks, inputs, strict=True):
        hook.detach()
        bias = np.zeros((3, 5 + classes), "float32")
        bias[:, 4] = {"few": -6, "all": 0}[candidates]
        output.prediction.bias.set_data(mx.nd.array(bias.reshape(-1)))
        shape = output.prediction.weight.shape
        scale = np.sqrt(shape[1] * float((given**2).mean().asscalar()))
        output.prediction.weight.set_data(mx.nd.random.normal(shape=shape) / scale)
    net.set_nms(nms_thresh=0.45, nms_topk=400)
    net.hybridize(static_alloc=static, static_shape=static)
    return net


def padded(rows: np.ndarray, images: np.ndarray, *, count: int) -> np.ndarray:
    """(n, ..) rows and their pictures -> (count, longest, width) float32, filled with -1."""
    order = np.argsort(images, kind="stable")
    images = images[order]
    place = np.arange(len(images)) - np.searchsorted(images, images)
    table = rows[order].reshape(len(rows), -1)
    result = np.full((count, place.max(initial=0) + 1, table.shape[1]), -1, "float32")
    result[images, place] = table
    return result


def main() -> None:
    """Answer until the pipe is closed."""
    held = Held()
    seed(0)
    plain = {"versions": versions, "transform": transform, "loader": loader, "voc07": voc07}
    serve({**plain, "step": partial(step, held), "inference": partial(inference, held)})


if __name__ == "__main__":
    main()
