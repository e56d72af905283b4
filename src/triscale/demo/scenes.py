"""The embedded data set: a toy harbour, drawn by ourselves, written as a VOC devkit.

It lets a machine without any data train, evaluate and demonstrate a detector within minutes, under
the project's own licence, and it exercises what real sets have: clutter, occlusion, objects cut by
the border, difficult objects, empty pictures. Colour does not give a class away, form does; the
distractors share paint and light with the classes. Picture i of a seed is a pure function of
(seed, i): a larger set begins with the pictures of a smaller one.

Conventions: boxes surround what is *visible* of an object, as an annotator would draw them (VOC2007
annotation guidelines); objects of which less than 60 % is seen, be it for other objects or for the
border, and very small ones are `difficult`; those of which less than 15 % is seen are not
annotated; `truncated` means that the border of the picture cuts the object.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.demo import painting, sprites
from triscale.errors import UserError

MARKER = "scenes.json"


class _Kind(NamedTuple):
    """A shape and how it behaves."""

    name: str
    shape: sprites.Shape
    tilt: float  # the most it leans to a side, in radians
    in_air: bool
    on_ground: bool  # or in the water


_CLASSES = (
    _Kind("balloon", sprites.balloon, 0.25, in_air=True, on_ground=False),
    _Kind("bird", sprites.bird, 0.35, in_air=True, on_ground=True),
    _Kind("boat", sprites.boat, 0.25, in_air=False, on_ground=True),
    _Kind("crab", sprites.crab, 0.3, in_air=False, on_ground=True),
    _Kind("fish", sprites.fish, 0.4, in_air=False, on_ground=True),
    _Kind("lighthouse", sprites.lighthouse, 0.14, in_air=False, on_ground=True),
)
_DISTRACTORS = (
    _Kind("rock", sprites.rock, 0.3, in_air=False, on_ground=True),
    _Kind("starfish", sprites.starfish, 3.1, in_air=False, on_ground=True),
    _Kind("kite", sprites.kite, 0.5, in_air=True, on_ground=False),
    _Kind("umbrella", sprites.umbrella, 0.4, in_air=False, on_ground=True),
    _Kind("crate", sprites.crate, 0.4, in_air=False, on_ground=True),
    _Kind("post", sprites.post, 0.3, in_air=False, on_ground=True),
)
CLASSES = tuple(kind.name for kind in _CLASSES)

_COUNTS = (0.18, 0.24, 0.24, 0.18, 0.1, 0.06)  # share of pictures with 1..6 objects
_LABELLED_FROM = 0.15  # visible fraction
_EASY_FROM = 0.6
_EASY_SIDE = 12  # the visible box's longer side, in pixels
_JPEG_QUALITY = 92


class Scene(NamedTuple):
    """A picture with its annotation; n objects."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    boxes: NDArray[np.float32]  # (n, 4) xyxy pixels, continuous edges
    labels: NDArray[np.int64]  # (n,) index into CLASSES
    difficult: NDArray[np.bool_]  # (n,)
    truncated: NDArray[np.bool_]  # (n,)


class Placed(NamedTuple):
    """What has been drawn into a picture; `label` is -1 for a distractor."""

    label: int
    mask: NDArray[np.bool_]  # (H, W) where it was drawn
    area: int  # pixels of the whole object, those beyond the border included


def write_scenes(
    root: Path,
    *,
    num_train: int,
    num_test: int,
    seed: int = 0,
    size: tuple[int, int] = (240, 320),
) -> None:
    """A VOC devkit with pictures of `size` (height, width) in `root`/VOC2007.

    Does nothing where `root` holds the very same set already, completes one that was interrupted,
    and raises UserError rather than touch a folder that holds anything else.
    """
    if num_train < 0 or num_test < 0 or seed < 0 or min(size) < 64:
        raise UserError(
            f"scenes: expected counts and seed >= 0 and sides >= 64, got num_train={num_train}, "
            f"num_test={num_test}, seed={seed}, size={size}"
        )
    wanted = {
        "format": 1,
        "num_train": num_train,
        "num_test": num_test,
        "seed": seed,
        "size": list(size),
        "classes": list(CLASSES),
    }
    marker, unfinished = root / MARKER, root / f"{MARKER}.part"
    try:
        if marker.exists():
            _require_same(marker, wanted)
            return
        if unfinished.exists():
            _require_same(unfinished, wanted)
        elif root.exists() and any(root.iterdir()):
            raise UserError(
                f"{root}: expected an empty or new folder, or one of ours with {MARKER}, found "
                f"'{min(p.name for p in root.iterdir())}'; name another folder"
            )
        root.mkdir(parents=True, exist_ok=True)
        # First of all, so that an interrupted folder is known to be ours.
        unfinished.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        devkit = root / "VOC2007"
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (devkit / folder).mkdir(parents=True, exist_ok=True)
        names = [f"{i + 1:06d}" for i in range(num_train + num_test)]
        for i, name in enumerate(names):
            scene = draw_scene(np.random.default_rng(np.random.SeedSequence([seed, i])), size)
            bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
            _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            (devkit / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg.tobytes())
            (devkit / "Annotations" / f"{name}.xml").write_text(_voc_xml(name, scene), "utf-8")
        for split, part in (("trainval", names[:num_train]), ("test", names[num_train:])):
            listing = devkit / "ImageSets" / "Main" / f"{split}.txt"
            listing.write_text("".join(f"{name}\n" for name in part), encoding="utf-8")
        os.replace(unfinished, marker)
    except OSError as error:
        raise UserError(f"{error.filename or root}: can't be written ({error.strerror})") from error


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """One random picture of `size` (height, width) with its annotation."""
    canvas, horizon = painting.backdrop(rng, size)
    light = math.radians(rng.uniform(-150, -30))  # from above, anywhere between left and right
    direction = (math.cos(light), math.sin(light))
    num_objects = 0 if rng.random() < 0.02 else int(rng.choice(len(_COUNTS), p=_COUNTS)) + 1
    labels = np.r_[rng.integers(0, len(CLASSES), num_objects), np.full(rng.integers(0, 4), -1)]
    placed: list[Placed] = []
    for label in rng.permutation(labels).tolist():
        placed.append(_place(canvas, rng, label, placed, horizon=horizon, light=direction))
    boxes, found, difficult, truncated = annotate(placed)
    return Scene(painting.photograph(canvas, rng), boxes, found, difficult, truncated)


def annotate(
    placed: Sequence[Placed],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Boxes (n, 4), labels (n,), difficult (n,), truncated (n,) of what is seen of each object.

    `placed` is in the order of drawing: each object hides what lies below it.
    """
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    difficult: list[bool] = []
    truncated: list[bool] = []
    hidden = np.zeros_like(placed[0].mask) if placed else np.zeros((0, 0), np.bool_)
    for label, mask, area in reversed(placed):
        visible = mask & ~hidden
        hidden |= mask
        fraction = int(np.count_nonzero(visible)) / max(area, 1)
        if label < 0 or fraction < _LABELLED_FROM:
            continue
        columns, rows = np.flatnonzero(visible.any(0)), np.flatnonzero(visible.any(1))
        x1, y1, x2, y2 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        boxes.append((x1, y1, x2, y2))
        labels.append(label)
        difficult.append(fraction < _EASY_FROM or max(x2 - x1, y2 - y1) < _EASY_SIDE)
        truncated.append(int(np.count_nonzero(mask)) < area)
    return (
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(difficult, np.bool_),
        np.array(truncated, np.bool_),
    )


def _place(
    canvas: NDArray[np.float32],
    rng: np.random.Generator,
    label: int,
    placed: Sequence[Placed],
    *,
    horizon: int,
    light: tuple[float, float],
) -> Placed:
    """Draw one object (or a distractor, label -1) where it belongs."""
    height, width = canvas.shape[:2]
    short = min(height, width)
    kind = _CLASSES[label] if label >= 0 else _DISTRACTORS[rng.integers(len(_DISTRACTORS))]
    largest = 0.58 if label >= 0 else 0.3
    size = short * math.exp(rng.uniform(math.log(0.22 if label >= 0 else 0.08), math.log(largest)))
    paint = painting.random_paint(rng)
    sprite = painting.render(
        kind.shape(rng, paint),
        paint,
        size=size,
        turn=rng.uniform(-1, 1) * kind.tilt,
        flip=bool(rng.random() < 0.5),
        stretch=rng.uniform(0.9, 1.12),
        light=light,
    )
    low = 0.05 * height if kind.in_air else horizon + 0.02 * height
    high = 0.95 * height if kind.on_ground else horizon + 0.15 * height
    occupied = np.zeros((height, width), np.bool_)
    for other in placed:
        occupied |= other.mask
    reach, tolerated = max(2, int(0.5 * size)), rng.uniform(0, 0.2)
    x = y = 0
    for _ in range(12):  # some overlap is wanted, heaps are not
        x, y = int(rng.uniform(0, 1) * width), int(rng.uniform(low, high))
        around = occupied[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach]
        if around.mean() <= tolerated:
            break
    if not kind.in_air:
        foot = y + sprite.pixels.shape[0] - sprite.centre[1]
        painting.paste(canvas, painting.shadow(size), at=(x, foot - 2))
    mask = painting.paste(canvas, sprite, at=(x, y))
    return Placed(label, mask, int(np.count_nonzero(sprite.pixels[..., 3] >= 0.5)))


def _voc_xml(name: str, scene: Scene) -> str:
    """The annotation as VOC writes it: corners are pixels, from 1, the last one included."""
    height, width = scene.image.shape[:2]
    lines = [
        "<annotation>",
        "  <folder>VOC2007</folder>",
        f"  <filename>{name}.jpg</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    rows = zip(scene.boxes.tolist(), scene.labels, scene.difficult, scene.truncated, strict=True)
    for (x1, y1, x2, y2), label, difficult, truncated in rows:
        lines += [
            "  <object>",
            f"    <name>{CLASSES[label]}</name>",
            "    <pose>Unspecified</pose>",
            f"    <truncated>{truncated:d}</truncated>",
            f"    <difficult>{difficult:d}</difficult>",
            f"    <bndbox><xmin>{x1 + 1:.0f}</xmin><ymin>{y1 + 1:.0f}</ymin>"
            f"<xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax></bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _require_same(marker: Path, wanted: Mapping[str, object]) -> None:
    """UserError unless `marker` was written for the `wanted` parameters."""
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if found != wanted:
        raise UserError(
            f"{marker}: expected scenes made with {json.dumps(dict(wanted))}, found "
            f"{json.dumps(found)}; delete the folder or name another one"
        )
