"""YOLO text labels: beside each picture a file with a row `class cx cy w h` per object.

The format of Darknet (https://github.com/pjreddie/darknet, since 2016) and of the tools that follow
it. The four numbers are fractions of the picture's width and height. A row of an odd number of
values from 7 on is a class and a polygon; it counts as the polygon's bounding box. The labels of
`.../images/a.jpg` are in `.../labels/a.txt`; a picture without that file has no objects. A split is
a folder of pictures, a list file, `all` for the pictures right in the folder of the data set, or a
key of `data.yaml`, of which only the entries `path train val test names nc` are read (a `download`
command certainly isn't).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from triscale.config import shown
from triscale.data.build import Convention, Found, Picture, Problem, Read, Scan, finish
from triscale.data.classes import require_names
from triscale.data.options import DataConfig
from triscale.data.pictures import PICTURE_SUFFIXES, picture_sizes
from triscale.data.root import DataRoot
from triscale.errors import UserError
from triscale.files import read_lines, read_regular

_MAX_YAML_BYTES = 1 << 18  # Open Images' 600 names take 10 kB; PyYAML takes seconds for this
_MAX_LABEL_BYTES = 10_000_000
_MAX_LIST_BYTES = 1 << 30
_MAX_CLASSES = 100_000  # where the numbers are all that there is
_ALL = "all"  # the split of the pictures right in the folder of the data set
_SPLIT_WORDS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


class YoloSource(NamedTuple):
    """A YOLO data set: where it is, and what its data.yaml says."""

    root: Path
    names: tuple[str, ...]  # empty: the classes have numbers only
    splits: dict[str, tuple[str, ...]]  # data.yaml: folders or list files of each split
    home: Path  # the folder of data.yaml, else root


def read_yolo(
    root: Path,
    split: str,
    config: DataConfig,
    *,
    classes: tuple[str, ...] | None = None,
) -> Read:
    """The pictures of a split of a folder or data.yaml; `classes` None: as the data names them."""
    source = yolo_source(root, outside=config.outside)
    names = source.names or positions(classes or ())
    scan = scan_yolo(source, split, names=names, outside=config.outside)
    return finish([scan], config, classes=classes or scan.names)[0]


def positions(classes: tuple[str, ...]) -> tuple[str, ...]:
    """`classes` if the label files' numbers count them; not if they are such numbers themselves."""
    return () if all(name.isdecimal() for name in classes) else classes


def yolo_source(root: Path, *, outside: bool = False) -> YoloSource:
    """What a data.yaml (or a folder that may hold one) says about a data set."""
    if os.path.isfile(root):
        return _read_yaml(root)
    for name in ("data.yaml", "classes.txt", "obj.names"):
        file = root / name
        if os.path.lexists(file):
            DataRoot(root, outside=outside).require(file)
            if name == "data.yaml":
                return _read_yaml(file)
            rows = read_lines(file, limit=_MAX_YAML_BYTES)
            names = [row.strip() for row in rows if row.strip()]
            return YoloSource(root, require_names(names, source=str(file)), {}, root)
    return YoloSource(root, (), {}, root)


def yolo_splits(source: YoloSource) -> tuple[str, str] | None:
    """The usual (training, validation) splits, '' where there is none; None if neither exists."""
    found = {
        role: next((word for word in words if split_places(source, word)), "")
        for role, words in _SPLIT_WORDS.items()
    }
    if any(found.values()):
        return found["train"], found["val"]
    for place, split in ((source.root / "images", "images"), (source.root, _ALL)):
        if any(label_path(picture).exists() for picture in _pictures_in(place)):
            return split, ""
    return None


def scan_yolo(
    source: YoloSource, split: str, *, names: tuple[str, ...], outside: bool = False
) -> Scan:
    """Everything that the split holds, classes by name; without `names` by number.

    `outside`: list files and links may lead out of the folder of the data set.
    """
    root = DataRoot(source.home, outside=outside)
    if not root.holds(source.root):  # data.yaml's `path` names another folder
        root = DataRoot(source.root, outside=outside)
    parts = [part.strip() for part in split.split("+")]
    paths = [path for part in parts for path in _picture_paths(source, part, root)]
    pictures: list[Picture] = []
    problems: list[Problem] = []
    num_files = 0
    for path, size in zip(paths, picture_sizes(paths, root), strict=True):
        if isinstance(size, UserError):
            problems.append(Problem(str(size), "broken-picture", path, picture=path))
            continue
        labels = label_path(path)
        # A link that leads nowhere isn't the same as no file: its labels are missing.
        if os.path.lexists(labels):
            root.require(labels)
            num_files += 1
            objects = _read_rows(labels, names, problems, picture=path)
        else:
            objects = []
        if objects is not None:
            pictures.append(Picture(str(path), path.stem, size, str(labels), objects))
    if pictures and not num_files:  # a wrong folder looks like a set of empty pictures
        raise UserError(
            f"{split}: none of its {len(pictures)} pictures has a label file; "
            f"looked for {label_path(paths[0])} and so on"
        )
    if not names:
        used = {int(found.name) for picture in pictures for found in picture.objects}
        names = tuple(str(number) for number in sorted(used))
    return Scan(split, _YOLO, pictures, problems, tuple(dict.fromkeys(names)))


def _to_xyxy(written: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    written = np.clip(written, -1e9, 1e9)  # absurd numbers stay outside, without an overflow
    centre, half = written[:, :2], written[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1) * sizes[:, [1, 0, 1, 0]]


_YOLO = Convention("line", ("cx", "cy", "w", "h"), _to_xyxy)


class _Loader(yaml.SafeLoader):
    """Without aliases: a few lines of them are billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


def _read_yaml(path: Path) -> YoloSource:
    data = read_regular(path, limit=_MAX_YAML_BYTES)
    try:
        content = yaml.load(data, _Loader)
    # PyYAML's constructors let through what int(), date() and so on say to absurd values.
    except (
        *(yaml.YAMLError, RecursionError, ValueError),
        *(LookupError, TypeError, AttributeError, ArithmeticError),
    ) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys train, val, names; found none")
    folder = content.get("path") or "."
    if not isinstance(folder, str):
        raise UserError(f"{path}: 'path' is {shown(folder)}, expected a folder")
    splits: dict[str, tuple[str, ...]] = {}
    for key in ("train", "val", "test"):
        value = content.get(key) or []
        places = value if isinstance(value, list) else [value]
        if not all(isinstance(place, str) for place in places):
            raise UserError(f"{path}: '{key}' is {shown(value)}, expected folders or list files")
        if places:
            splits[key] = tuple(places)
    return YoloSource(path.parent / folder, _class_names(content, path), splits, path.parent)


def _class_names(content: dict[Any, Any], path: Path) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if count is not None and (type(count) is not int or not 0 <= count <= _MAX_CLASSES):
        limit = f"{_MAX_CLASSES:,}"
        raise UserError(f"{path}: nc is {shown(count)}, expected a number of classes up to {limit}")
    if isinstance(names, dict):
        if not all(type(key) is int for key in names) or set(names) != set(range(len(names))):
            raise UserError(f"{path}: the numbers in 'names' are not 0 to {len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    if names is None:
        names = list(range(count or 0))
    # YAML reads an unquoted yes, no, on, off as true or false.
    if not isinstance(names, list) or not all(_is_name(name) for name in names):
        raise UserError(f"{path}: 'names' is {shown(names)}, expected texts (quote words like no)")
    if count is not None and names and count != len(names):
        raise UserError(f"{path}: nc is {count}, but there are {len(names)} names")
    return require_names([str(name) for name in names], source=str(path))


def _is_name(name: object) -> bool:
    return isinstance(name, str) or (type(name) is int and name.bit_length() <= 64)


def _pictures_in(folder: Path) -> list[Path]:
    """What is named like a picture right in `folder`, sorted."""
    try:
        return sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES)
    except (OSError, ValueError):  # no folder, or no name of one
        return []


def split_places(source: YoloSource, split: str) -> list[Path]:
    """The folders and list files of a split; empty if there is no such split."""
    root = source.root
    if split in source.splits:
        return [_existing(root, place) or root / place for place in source.splits[split]]
    layouts = (f"images/{split}", f"{split}/images", f"{split}.txt", split)
    found = [root / place for place in layouts if os.path.exists(root / place)]
    return found[:1]


def _existing(root: Path, place: str) -> Path | None:
    # Roboflow's exports say ../train/images where train/images beside the file is meant.
    candidates = (root / place, root / place.removeprefix("../"))
    return next((path for path in candidates if os.path.exists(path)), None)


def _picture_paths(source: YoloSource, split: str, root: DataRoot) -> list[Path]:
    places = split_places(source, split)
    if not places and split == _ALL:  # not what is below: a run's pictures may be there
        return _pictures_in(source.root)
    if not places:
        raise UserError(
            f"{source.root}: no split {shown(split)} (no such key, folder or list file)"
        )
    return [path for place in places for path in _pictures_at(place, root)]


def _pictures_at(place: Path, root: DataRoot) -> list[Path]:
    root.require(place)
    if os.path.isdir(place):
        return _pictures_below(place, root)
    try:
        rows = [row.strip() for row in read_lines(place, limit=_MAX_LIST_BYTES)]
    except UserError as error:
        raise UserError(f"{place}: neither a folder nor a list of pictures ({error})") from error
    return [place.parent / row for row in rows if row]


def _pictures_below(folder: Path, root: DataRoot) -> list[Path]:
    """Everything below `folder` that is named like a picture, sorted.

    Links to folders are followed; a folder that several of them lead to is read once.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in folders:
            root.require(Path(place, name))
        found += [Path(place, f) for f in files if Path(f).suffix.lower() in PICTURE_SUFFIXES]
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename}: can't be read ({error.strerror})") from error


def label_path(picture: Path) -> Path:
    """`images` becomes `labels` in the path; without `images` the labels are beside the picture."""
    parts = list(picture.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_rows(
    path: Path, names: tuple[str, ...], problems: list[Problem], *, picture: Path
) -> list[Found] | None:
    """The objects of a label file; None if it can't be read."""
    try:
        rows = read_lines(path, limit=_MAX_LABEL_BYTES)
    except UserError as error:
        problems.append(Problem(str(error), "broken-labels", path, picture=picture))
        return None
    objects: list[Found] = []
    for number, row in enumerate(rows, 1):
        if row.strip():
            found = _read_row(row, number, names)
            if isinstance(found, str):
                line = f"{path}: line {number}: {found}"
                problems.append(Problem(line, "broken-object", path, number, picture))
            else:
                objects.append(found)
    return objects


def _read_row(row: str, number: int, names: tuple[str, ...]) -> Found | str:
    """The object of a row, or what is wrong with the row."""
    try:
        label, *values = [float(word) for word in row.split()]
    except ValueError:
        return f"{shown(row.strip())} is not a row of numbers"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"{len(values) + 1} values, expected class cx cy w h, or a class and a polygon"
    if not label.is_integer() or not 0 <= label < (len(names) or _MAX_CLASSES):
        known = (
            f"a class from 0 to {len(names) - 1}"
            if names
            else f"a class number below {_MAX_CLASSES:,}"
        )
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
