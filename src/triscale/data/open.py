"""A data set from a path: its format is found by looking, and its splits share one list of classes.

Accepted are a VOCdevkit or one VOC folder, a COCO root, a YOLO folder or data.yaml, and a TOML file
that says what can't be found by looking:

    format = "coco"                       # voc, coco or yolo
    root = "."                            # relative to this file
    train = "labels/train.json"           # as `data.train`, or a file under root
    val = "labels/val.json"
    train_images = "pictures"             # COCO only; else found by looking
    val_images = "pictures"
    classes = ["cat", "dog"]              # else from the data
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from triscale.config import build, read_toml, to_dict
from triscale.data.build import Read, Scan, finish
from triscale.data.cache import cached
from triscale.data.classes import require_names
from triscale.data.coco import scan_coco
from triscale.data.holdout import divide, held_out
from triscale.data.index import Index
from triscale.data.options import DataConfig
from triscale.data.root import DataRoot
from triscale.data.voc import scan_voc, voc_classes, voc_splits
from triscale.data.yolo import YoloSource, positions, scan_yolo, yolo_source, yolo_splits
from triscale.errors import UserError

# Options that decide what is opened only through paths and classes, or not at all.
_NO_MATTER = (
    *("path", "train", "val", "holdout", "classes", "num_samples"),
    *("index_cache", "cache", "cache_gib"),
)


class Data(NamedTuple):
    """A data set that is ready to be used."""

    format: str
    root: Path
    classes: tuple[str, ...]
    train: Index | None  # None: not asked for
    val: Index | None
    skipped: tuple[str, ...]  # one line for each broken thing that `skip_bad` left out
    note: str = ""  # what was done where the data have no validation split


class Scanned(NamedTuple):
    """A data set as its files state it: nothing is judged, nothing left out."""

    format: str
    root: Path
    classes: tuple[str, ...]
    scans: dict[str, Scan]  # by split: train, val


@dataclass(frozen=True)
class DataFile:
    """The keys of a TOML file that describes a data set."""

    format: Literal["", "voc", "coco", "yolo"] = ""
    root: str = "."
    train: str = ""
    val: str = ""
    classes: tuple[str, ...] = ()
    train_images: str = ""
    val_images: str = ""


def open_dataset(
    path: Path,
    config: DataConfig = DataConfig(),  # noqa: B008  # frozen
    *,
    classes: tuple[str, ...] | None = None,
    splits: tuple[str, ...] = ("train", "val"),
) -> Data:
    """Read the splits of a data set ("train", "val" or both).

    Without a split for validation some pictures of the training split are held out: they are `val`
    then, and not in `train`, whichever of the two was asked for.

    The classes are `classes`, else those of the configuration, of the TOML file, or of the data. A
    fixed list makes an object of any other class a broken label.
    """
    source = _find(path, config, classes)
    holding = bool(source.wanted["train"]) and not source.wanted["val"]
    for role in splits:
        if not source.wanted[role] and not holding:
            raise UserError(
                f"{source.root}: no {role} split found; name one with --set data.{role}=..."
            )
    asked = splits
    if holding:
        source, splits = _train_for_both(source), ("val",)  # of which both parts are taken
        if source.format == "coco" and "train" in asked:  # what is measured on isn't all learned
            splits = ("val", "train")

    def make() -> list[Read]:
        scans, chosen = _scan(source, config, splits)
        # a split that is read twice has its broken labels twice: they are counted once
        groups = [[scan] for scan in scans] if holding else [scans]
        reads = [r for g in groups for r in finish(g, config, classes=chosen, source=str(path))]
        if not chosen:
            raise UserError(f"{path}: no object in it, and so no class; name them in data.classes")
        return reads

    places = {role: _coco_places(source, role) for role in splits if source.format == "coco"}
    if places and config.index_cache:
        opened = cached(
            [annotations for annotations, _ in places.values()],
            make,
            facts=_facts(source.root, places, source.fixed, config),
        )
    else:
        opened = make()
    found: dict[str, Index | None] = {
        role: read.index for role, read in zip(splits, opened, strict=True)
    }
    note = ""
    if holding:
        found, note = _hold_out(opened[0].index, opened[-1].index, config.holdout)
        if asked == ("val",) and not found["val"]:
            raise UserError(f"{source.root}: {note}; name one with --set data.val=...")
    lines = [line for read in opened for line in read.skipped]
    return Data(
        source.format,
        source.root,
        opened[0].index.classes,
        found.get("train") if "train" in asked else None,
        found.get("val") if "val" in asked else None,
        tuple(dict.fromkeys(lines) if holding else lines),
        note,
    )


def scan_dataset(path: Path, config: DataConfig) -> Scanned:
    """What the label files of a data set hold, broken or not; it has at least one split."""
    source = _find(path, config, None)
    splits = tuple(role for role, name in source.wanted.items() if name)
    if not splits:
        raise UserError(f"{path}: no split found; name one with --set data.train=...")
    scans, classes = _scan(source, config, splits)
    return Scanned(source.format, source.root, classes, dict(zip(splits, scans, strict=True)))


class _Source(NamedTuple):
    """Where a data set is."""

    path: Path  # as it was given
    format: str
    root: Path
    fixed: tuple[str, ...]  # classes that don't come from the data
    wanted: dict[str, str]  # the splits, '' for none
    images: dict[str, str]  # COCO: folders of pictures, '' for those to be found by looking
    yolo: YoloSource | None


def _find(path: Path, config: DataConfig, classes: tuple[str, ...] | None) -> _Source:
    file = DataFile()
    root = path
    if path.suffix.lower() == ".toml":
        file = build(DataFile, read_toml(path), where=str(path))
        root = path.parent / file.root
    format = file.format or _find_format(root, config)
    yolo = yolo_source(root, outside=config.outside) if format == "yolo" else None
    defaults = _defaults(format, root, yolo)
    wanted = {
        "train": config.train or file.train or defaults[0],
        "val": config.val or file.val or defaults[1],
    }
    images = {"train": file.train_images, "val": file.val_images}
    fixed = classes or config.classes or file.classes
    return _Source(path, format, root, fixed, wanted, images, yolo)


def _train_for_both(source: _Source) -> _Source:
    """The source with its training split as the validation split too."""
    return source._replace(
        wanted=dict.fromkeys(source.wanted, source.wanted["train"]),
        images=dict.fromkeys(source.images, source.images["train"]),
    )


def _scan(
    source: _Source, config: DataConfig, splits: Sequence[str]
) -> tuple[list[Scan], tuple[str, ...]]:
    """The splits as their files state them, and the classes of all together."""
    root, scans = source.root, list[Scan]()
    for role in splits:
        split = source.wanted[role]
        if source.format == "voc":
            scans.append(scan_voc(root, split, outside=config.outside))
        elif source.yolo:
            names = source.yolo.names or positions(source.fixed)
            scans.append(scan_yolo(source.yolo, split, names=names, outside=config.outside))
        else:
            inside = DataRoot(root, outside=config.outside)
            places = _coco_places(source, role)
            scans.append(scan_coco(*places, config, evaluation=role == "val", root=inside))
    classes = source.fixed or _classes(source.format, scans)
    return scans, require_names(classes, source=str(source.path))


def _coco_places(source: _Source, role: str) -> tuple[Path, Path]:
    return _find_coco(source.root, source.wanted[role], source.images[role])


def describe(data: Data) -> list[str]:
    """The data set in a few lines for people: what was found, and how much of it."""
    lines = [f"{data.format} data in {data.root}: {len(data.classes)} classes"]
    indices = [index for index in (data.train, data.val) if index is not None]
    for index in indices:
        empty = int((np.diff(index.offsets) == 0).sum())
        parts = [f"{len(index)} pictures", f"{len(index.boxes)} boxes"]
        parts += [f"{n} difficult" for n in [int(index.difficult.sum())] if n]
        parts += [f"{n} crowd" for n in [int(index.crowd.sum())] if n]
        parts += [f"{empty} pictures without objects"] if empty else []
        lines.append(f"{index.name}: {', '.join(parts)}")
    lines += [data.note] if data.note else []
    counts = [np.bincount(index.labels, minlength=len(data.classes)) for index in indices]
    table = [("boxes of", *(index.name for index in indices))]
    table += [(name, *(str(n[label]) for n in counts)) for label, name in enumerate(data.classes)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *cells in table:
        columns = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join(["", name.ljust(widths[0]), *columns]))
    return lines


def _hold_out(whole: Index, learned: Index, part: float) -> tuple[dict[str, Index | None], str]:
    """The two parts of a split, as it is measured on and as it is learned from; what was done."""
    ids = held_out(whole, part)
    if not ids:
        why = f"of {len(whole)} pictures none can be spared" if part else "data.holdout is 0"
        return {"train": learned, "val": None}, f"no validation split, and {why}"
    train, val = divide(learned, ids)[0], divide(whole, ids)[1]
    note = (
        f"no validation split: {len(val)} of the {len(whole)} pictures of {whole.name}, chosen by "
        f"a hash of their names, are held out as one (data.holdout={part:g})"
    )
    return {"train": train, "val": replace(val, name=f"{val.name} (held out)")}, note


def _find_format(root: Path, config: DataConfig) -> str:
    # os.path: is_file() and is_dir() raise for what can be no name
    if os.path.isfile(root) and root.suffix.lower() in (".yaml", ".yml"):
        return "yolo"
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder, .toml or .yaml file")
    if voc_splits(root):
        return "voc"
    if (root / "data.yaml").is_file():
        return "yolo"
    if _coco_files(root):
        return "coco"
    if yolo_splits(yolo_source(root, outside=config.outside)):
        return "yolo"
    found = sorted(entry.name for entry in root.iterdir())
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    raise UserError(
        f"{root}: no data set found; "
        "looked for VOC (VOC2007/ or Annotations/ with ImageSets/Main/), COCO (annotations/*.json) "
        "and YOLO (data.yaml, images/train, train/images, train.txt); "
        f"found {', '.join(found[:8]) or 'nothing'}{more}"
    )


def _defaults(format: str, root: Path, yolo: YoloSource | None) -> tuple[str, str]:
    """The usual (training, validation) splits, '' where there is none."""
    if yolo:
        return yolo_splits(yolo) or ("", "")
    if format == "voc":
        return voc_splits(root) or ("", "")
    names = [file.stem.removeprefix("instances_") for file in _coco_files(root)]
    train = [name for name in names if "train" in name.lower()]
    val = [name for name in names if "val" in name.lower() and name not in train]
    if len(names) == 1 and not val and "test" not in names[0].lower():
        train = names
    return (train or [""])[-1], (val or [""])[-1]  # the newest year


def _coco_files(root: Path) -> list[Path]:
    """The annotation files of boxes; an official folder holds captions and keypoints besides."""
    folder = root / "annotations"
    return sorted(folder.glob("instances_*.json")) or sorted(folder.glob("*.json"))


def _find_coco(root: Path, name: str, images: str) -> tuple[Path, Path]:
    """The annotation file of a split and the folder of its pictures."""
    folder = root / "annotations"
    places = (folder / f"instances_{name}.json", folder / f"{name}.json", root / name)
    annotations = next((place for place in places if place.exists()), None)
    if annotations is None:
        known = ", ".join(file.stem for file in _coco_files(root)) or "no files"
        raise UserError(f"{folder}: no annotation file for split '{name}'; found {known}")
    if images:
        return annotations, root / images
    stem = annotations.stem.removeprefix("instances_")
    options = (root / stem, root / "images" / stem, root / "images")
    return annotations, next((option for option in options if option.is_dir()), root)


def _facts(
    root: Path,
    places: Mapping[str, tuple[Path, Path]],
    fixed: Sequence[str],
    config: DataConfig,
) -> object:
    """All that decides what opening a COCO set gives, except the files' content."""
    options = {key: value for key, value in to_dict(config).items() if key not in _NO_MATTER}
    # A path as it was given stands in messages and, if it is relative, in the index.
    paths = [root, *(path for pair in places.values() for path in pair)]
    return [list(places), [[str(p), _real(p)] for p in paths], list(fixed), options]


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # no path at all, as reading the pictures will say
        return ""


def _classes(format: str, scans: list[Scan]) -> tuple[str, ...]:
    """The classes of all splits together, in the order that the format gives them."""
    names = tuple(dict.fromkeys(name for scan in scans for name in scan.names))
    if format == "voc":
        return voc_classes(names)
    if all(name.isdecimal() for name in names):  # YOLO without names
        return tuple(sorted(names, key=int))
    return names
