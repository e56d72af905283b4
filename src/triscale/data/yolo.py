"""YOLO text labels: beside each picture a file with a row `class cx cy w h` per object.

The format of Darknet (https://github.com/pjreddie/darknet, since 2016) and of the tools that follow
it. The four numbers are fractions of the picture's width and height. A row of an odd number of
values from 7 on is a class and a polygon; it counts as the polygon's bounding box. The labels of
`.../images/a.jpg` are in `.../labels/a.txt`; a picture without that file has no objects. A split is
a folder of pictures, a list file, or a key of `data.yaml`, of which only the entries `path train
val test names nc` are read (a `download` command certainly isn't).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from triscale.data.build import Convention, Found, Picture, Read, Scan, finish
from triscale.data.classes import require_names
from triscale.data.options import DataConfig
from triscale.data.pictures import is_picture, picture_sizes
from triscale.errors import UserError

_SPLIT_WORDS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


class YoloSource(NamedTuple):
    """A YOLO data set: where it is, and what its data.yaml says."""

    root: Path
    names: tuple[str, ...]  # empty: the classes have numbers only
    splits: dict[str, tuple[str, ...]]  # data.yaml: folders or list files of each split


def read_yolo(
    root: Path, split: str, config: DataConfig, *, classes: tuple[str, ...] | None = None
) -> Read:
    """The pictures of a split of a folder or data.yaml; `classes` None: as the data names them."""
    source = yolo_source(root)
    scan = scan_yolo(source, split, names=source.names or positions(classes or ()))
    return finish([scan], config, classes=classes or scan.names)[0]


def positions(classes: tuple[str, ...]) -> tuple[str, ...]:
    """`classes` if the label files' numbers count them; not if they are such numbers themselves."""
    return () if all(name.isdecimal() for name in classes) else classes


def yolo_source(root: Path) -> YoloSource:
    """What a data.yaml (or a folder that may hold one) says about a data set."""
    path = root if root.is_file() else root / "data.yaml"
    if path.is_file():
        return _read_yaml(path)
    for name in ("classes.txt", "obj.names"):
        file = root / name
        if file.is_file():
            rows = file.read_text(encoding="utf-8", errors="replace").splitlines()
            names = [row.strip() for row in rows if row.strip()]
            return YoloSource(root, require_names(names, source=str(file)), {})
    return YoloSource(root, (), {})


def yolo_splits(source: YoloSource) -> tuple[str, str] | None:
    """The usual (training, validation) splits, '' where there is none; None if neither exists."""
    found = {
        role: next((word for word in words if _places(source, word)), "")
        for role, words in _SPLIT_WORDS.items()
    }
    return (found["train"], found["val"]) if any(found.values()) else None


def scan_yolo(source: YoloSource, split: str, *, names: tuple[str, ...]) -> Scan:
    """Everything that the split holds, classes by name; without `names` by number."""
    paths = [path for part in split.split("+") for path in _picture_paths(source, part.strip())]
    pictures: list[Picture] = []
    problems: list[str] = []
    num_files = 0
    for path, size in zip(paths, picture_sizes(paths), strict=True):
        if isinstance(size, UserError):
            problems.append(str(size))
            continue
        labels = _label_path(path)
        num_files += labels.is_file()
        objects = _read_rows(labels, names, problems) if labels.is_file() else []
        if objects is not None:
            pictures.append(Picture(str(path), path.stem, size, str(labels), objects))
    if pictures and not num_files:  # a wrong folder looks like a set of empty pictures
        raise UserError(
            f"{split}: none of its {len(pictures)} pictures has a label file; "
            f"looked for {_label_path(paths[0])} and so on"
        )
    if not names:
        used = {int(found.name) for picture in pictures for found in picture.objects}
        names = tuple(str(number) for number in sorted(used))
    return Scan(split, _YOLO, pictures, problems, tuple(dict.fromkeys(names)))


def _to_xyxy(written: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    centre, half = written[:, :2], written[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1) * sizes[:, [1, 0, 1, 0]]


_YOLO = Convention("line", ("cx", "cy", "w", "h"), _to_xyxy)


def _read_yaml(path: Path) -> YoloSource:
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys train, val, names; found none")
    folder = content.get("path") or "."
    if not isinstance(folder, str):
        raise UserError(f"{path}: 'path' is {folder!r}, expected a folder")
    splits: dict[str, tuple[str, ...]] = {}
    for key in ("train", "val", "test"):
        value = content.get(key) or []
        places = value if isinstance(value, list) else [value]
        if not all(isinstance(place, str) for place in places):
            raise UserError(f"{path}: '{key}' is {value!r}, expected folders or list files")
        if places:
            splits[key] = tuple(places)
    return YoloSource(path.parent / folder, _class_names(content, path), splits)


def _class_names(content: dict[Any, Any], path: Path) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{path}: the numbers in 'names' are not 0 to {len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    if names is None:
        names = list(range(count)) if isinstance(count, int) else []
    # YAML reads an unquoted yes, no, on, off as true or false.
    if not isinstance(names, list) or any(type(name) not in (str, int) for name in names):
        raise UserError(f"{path}: 'names' is {names!r}, expected texts (quote words like no)")
    if count is not None and names and count != len(names):
        raise UserError(f"{path}: nc is {count!r}, but there are {len(names)} names")
    return require_names([str(name) for name in names], source=str(path))


def _places(source: YoloSource, split: str) -> list[Path]:
    """The folders and list files of a split; empty if there is no such split."""
    root = source.root
    if split in source.splits:
        return [_existing(root, place) or root / place for place in source.splits[split]]
    layouts = (f"images/{split}", f"{split}/images", f"{split}.txt", split)
    found = [root / place for place in layouts if (root / place).exists()]
    return found[:1]


def _existing(root: Path, place: str) -> Path | None:
    # Roboflow's exports say ../train/images where train/images beside the file is meant.
    candidates = (root / place, root / place.removeprefix("../"))
    return next((path for path in candidates if path.exists()), None)


def _picture_paths(source: YoloSource, split: str) -> list[Path]:
    places = _places(source, split)
    if not places:
        raise UserError(f"{source.root}: no split '{split}' (no such key, folder or list file)")
    return [path for place in places for path in _pictures_at(place)]


def _pictures_at(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if is_picture(path))
    try:
        rows = [row.strip() for row in place.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: neither a folder nor a list of pictures") from error
    return [place.parent / row for row in rows if row]


def _label_path(picture: Path) -> Path:
    """`images` becomes `labels` in the path; without `images` the labels are beside the picture."""
    parts = list(picture.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_rows(path: Path, names: tuple[str, ...], problems: list[str]) -> list[Found] | None:
    """The objects of a label file; None if it can't be read."""
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        problems.append(f"{path}: not a text file that can be read")
        return None
    objects: list[Found] = []
    for number, row in enumerate(rows, 1):
        if row.strip():
            found = _read_row(row, number, names)
            if isinstance(found, str):
                problems.append(f"{path}: line {number}: {found}")
            else:
                objects.append(found)
    return objects


def _read_row(row: str, number: int, names: tuple[str, ...]) -> Found | str:
    """The object of a row, or what is wrong with the row."""
    try:
        label, *values = [float(word) for word in row.split()]
    except ValueError:
        return f"'{row.strip()[:80]}' is not a row of numbers"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"{len(values) + 1} values, expected class cx cy w h, or a class and a polygon"
    if not label.is_integer() or label < 0 or (names and label >= len(names)):
        known = f"a class from 0 to {len(names) - 1}" if names else "a class number"
        return f"class {label:g}, expected {known}"
    name = names[int(label)] if names else str(int(label))
    if len(values) == 4:
        return Found(number, name, (values[0], values[1], values[2], values[3]))
    if not all(math.isfinite(value) for value in values):
        return "polygon is not finite"  # min and max would hide it
    left, right = min(values[::2]), max(values[::2])
    top, bottom = min(values[1::2]), max(values[1::2])
    box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return Found(number, name, box)
