"""COCO: one JSON file per split with images, annotations and categories.

The format: https://cocodataset.org/#format-data. Category ids are sparse (90 numbers for 80
classes); here a class is the rank of its id, as in the reference. Training leaves out what can't be
learned from (crowd regions, on request empty pictures and small objects); evaluation keeps
everything, because the metric must know where crowds are (Lin et al. 2014, "Microsoft COCO").
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.data.build import Convention, Found, Picture, Read, Scan, finish, size_problem
from triscale.data.options import DataConfig
from triscale.data.pictures import picture_sizes
from triscale.errors import UserError


def read_coco(
    annotations: Path,
    images: Path,
    config: DataConfig,
    *,
    classes: tuple[str, ...] | None = None,
    evaluation: bool = False,
) -> Read:
    """The pictures of a COCO file, by image id; `classes` None: its categories, by category id.

    `images` is the folder of the pictures, or a COCO root whose folders the `coco_url`s name.
    """
    scan = scan_coco(annotations, images, config, evaluation=evaluation)
    return finish([scan], config, classes=classes or scan.names)[0]


def scan_coco(annotations: Path, images: Path, config: DataConfig, *, evaluation: bool) -> Scan:
    """Everything that the file holds, classes by name."""
    content = _read_json(annotations)
    problems: list[str] = []
    categories = _by_id(content["categories"], f"{annotations}: category", problems)
    names = {key: str(categories[key].get("name", key)) for key in sorted(categories)}
    entries = _by_id(content["images"], f"{annotations}: image", problems)
    objects: dict[int, list[Found]] = {key: [] for key in entries}
    for position, entry in enumerate(content["annotations"], 1):
        annotation = _read_annotation(entry, position, names, entries)
        if isinstance(annotation, str):
            problems.append(f"{annotations}: {annotation}")
            continue
        image, found, ignore = annotation
        if not evaluation:
            if ignore or (found.crowd and not config.use_crowd):
                continue
            if found.area <= 0:
                what = f"annotation {found.number} ('{found.name}'): area is {found.area:g}"
                problems.append(f"{annotations}: {entries[image].get('file_name')}: {what}")
                continue
            if found.area < config.min_object_area:
                continue
        objects[image].append(found)
    pictures = _pictures(annotations, images, entries, objects, problems)
    drop_empty = config.skip_empty and not evaluation
    classes = tuple(dict.fromkeys(names.values()))
    return Scan(annotations.stem, _COCO, pictures, problems, classes, drop_empty)


class _Annotation(NamedTuple):
    image: int
    found: Found
    ignore: bool


def _to_xyxy(written: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.concatenate([written[:, :2], written[:, :2] + written[:, 2:]], axis=1)


_COCO = Convention("annotation", ("x", "y", "width", "height"), _to_xyxy)


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: not a COCO annotation file: no list '{key}' in it")
    return content


def _by_id(entries: list[Any], where: str, problems: list[str]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries, 1):
        key = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(key, int):
            problems.append(f"{where} number {position}: no whole number as 'id'")
        elif found.get(key, entry) != entry:  # the same entry twice does no harm
            problems.append(f"{where} {key}: two different entries have this id")
        else:
            found[key] = entry
    return found


def _read_annotation(
    entry: Any, position: int, names: Mapping[int, str], images: Mapping[int, dict[str, Any]]
) -> _Annotation | str:
    """The annotation, or what is wrong with it."""
    if not isinstance(entry, dict):
        return f"annotation number {position}: expected a JSON object"
    number = entry.get("id")
    number = number if isinstance(number, int) else position
    image, category = entry.get("image_id"), entry.get("category_id")
    if not isinstance(image, int) or image not in images:
        return f"annotation {number}: image_id {image!r} is not among the images"
    if not isinstance(category, int) or category not in names:
        return f"annotation {number}: category_id {category!r} is not among the categories"
    box = _floats(entry.get("bbox"))
    if len(box) != 4:
        return f"annotation {number}: bbox is {entry.get('bbox')!r}, expected four numbers"
    area = _floats([entry.get("area", box[2] * box[3])])
    if not area:
        return f"annotation {number}: area is {entry['area']!r}, expected a number"
    x, y, width, height = box
    crowd = bool(entry.get("iscrowd", 0))
    found = Found(number, names[category], (x, y, width, height), crowd=crowd, area=area[0])
    return _Annotation(image, found, entry.get("ignore", 0) == 1)


def _floats(values: Any) -> list[float]:
    """JSON numbers as floats; empty if `values` isn't a list of numbers."""
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return []
    try:
        return [float(v) for v in values]
    except OverflowError:  # a whole number of hundreds of digits
        return []


def _pictures(
    annotations: Path,
    folder: Path,
    entries: Mapping[int, dict[str, Any]],
    objects: Mapping[int, list[Found]],
    problems: list[str],
) -> list[Picture]:
    """The readable pictures in the order of their ids."""
    named: dict[int, Path] = {}
    from_root: dict[str, bool] = {}
    for key in sorted(entries):
        if isinstance(entries[key].get("file_name"), str):
            named[key] = _path(annotations, folder, entries[key], from_root)
        else:
            problems.append(f"{annotations}: image {key}: no text as 'file_name'")
    pictures: list[Picture] = []
    sizes = picture_sizes(list(named.values()))
    for (key, path), size in zip(named.items(), sizes, strict=True):
        if isinstance(size, UserError):
            problems.append(str(size))
            continue
        source = f"{annotations}: {entries[key]['file_name']}"
        height_width = _floats([entries[key].get("height"), entries[key].get("width")])
        said = (height_width[0], height_width[1]) if height_width else None
        line = size_problem(said, size)
        if line:
            problems.append(f"{source}: {line}")
        if said in (None, size):  # else the boxes belong to some other picture
            pictures.append(Picture(str(path), str(key), size, source, objects[key]))
    return pictures


def _path(
    annotations: Path, folder: Path, entry: Mapping[str, Any], from_root: dict[str, bool]
) -> Path:
    """Where a picture is; `from_root` remembers which parts of URLs are folders."""
    name = str(entry["file_name"])
    if name.startswith("/") or ".." in name.split("/") or re.search(r"[\\:\0]", name):
        raise UserError(f"{annotations}: file_name '{name}' leads out of the folder of pictures")
    # The reference finds pictures under a root by the split's folder in the URL:
    # http://images.cocodataset.org/train2017/000000000009.jpg
    part = str(entry.get("coco_url", "")).split("/")[-2:-1]
    if part and re.fullmatch(r"\w+", part[0]):
        if part[0] not in from_root:
            from_root[part[0]] = (folder / part[0]).is_dir()
        if from_root[part[0]]:
            return folder / part[0] / name
    return folder / name
