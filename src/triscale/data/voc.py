"""Pascal VOC: an XML file per picture, splits as lists of names.

Two layouts are read: a VOCdevkit with years (`VOC2007/`, `VOC2012/`; splits like `2007_trainval`)
and a single folder as labelling tools write it (`Annotations/ JPEGImages/ ImageSets/Main/`; splits
like `trainval`; without lists of pictures all of them are the split `all`). Splits are joined by
'+'. Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; boxes are 1-based
and include their last pixel (VOC2007 development kit, section 4). The XML may come from anywhere,
so a DTD, the way to entity attacks, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from triscale.config import shown
from triscale.data.build import (
    Convention,
    Found,
    Picture,
    Problem,
    Read,
    Scan,
    finish,
    size_problem,
)
from triscale.data.classes import VOC_CLASSES
from triscale.data.options import DataConfig
from triscale.data.pictures import PICTURE_SUFFIXES, picture_sizes
from triscale.data.root import DataRoot
from triscale.errors import UserError
from triscale.files import read_lines, read_regular

MAX_XML_BYTES = 10_000_000
_MAX_XML_TAGS = 1_500_000  # a parsed tag takes a hundred bytes and more
_MAX_LIST_BYTES = 1 << 30
_ALL = "all"  # the split of what has an annotation, in a folder without lists
_MAX_NAME = 200  # characters of a class name
_KEYS = ("xmin", "ymin", "xmax", "ymax")
# What expat knows by itself, and tables of 256 characters. Python's other codecs may warn.
_ENCODING = re.compile(
    r"utf-?8|utf-?16(le|be)?|(us-)?ascii|iso-?8859-?\d+|latin-?1|(windows-|cp)125\d|koi8-[ru]", re.I
)


def read_voc(
    root: Path,
    splits: str,
    config: DataConfig,
    *,
    classes: tuple[str, ...] | None = None,
) -> Read:
    """The pictures of `splits`; `classes` None: the official 20, or else the names in the data."""
    scan = scan_voc(root, splits, outside=config.outside)
    return finish([scan], config, classes=classes or voc_classes(scan.names))[0]


def voc_classes(names: tuple[str, ...]) -> tuple[str, ...]:
    """The official 20 in their order if they cover `names`, else the sorted names."""
    known = bool(names) and {name.casefold() for name in names} <= set(VOC_CLASSES)
    return VOC_CLASSES if known else tuple(sorted(set(names)))


def voc_splits(root: Path) -> tuple[str, str] | None:
    """The usual (training, validation) splits, '' where there is none; None if it isn't VOC."""
    if _is_voc_folder(root):
        found = {split: [split] for split in _lists(root)}
    else:
        found: dict[str, list[str]] = {}
        years = sorted(f.name[3:] for f in root.glob("VOC[0-9]*") if _is_voc_folder(f))
        if not years:
            return None
        for year in years:
            for split in _lists(root / f"VOC{year}"):
                found.setdefault(split, []).append(f"{year}_{split}")
    train, val, trainval, tests = (
        found.get(word, []) for word in ("train", "val", "trainval", "test")
    )
    # VOC2007's test set is the one whose labels are public and that results are quoted on.
    test = [s for s in tests if s == "2007_test"] or tests[-1:]
    if trainval and test:
        train, val = trainval, test
    elif train:
        val = val or test
    elif not val:  # trainval would hold it
        others = [names for split, names in found.items() if split != "test"]
        train, val = trainval or (others[0] if len(others) == 1 else []), test
    return "+".join(train), "+".join(val)


def scan_voc(root: Path, splits: str, *, outside: bool = False) -> Scan:
    """Everything that the splits hold, classes by name; `outside`: links may leave `root`."""
    holder = DataRoot(root, outside=outside)
    pictures: list[Picture] = []
    problems: list[Problem] = []
    for split in splits.split("+"):
        folder, list_name = _locate(root, split.strip())
        _scan_list(folder, list_name, holder, pictures, problems)
    names = dict.fromkeys(found.name for picture in pictures for found in picture.objects)
    return Scan(splits, _VOC, pictures, problems, tuple(names))


def _to_xyxy(written: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    # Pixels are counted from 1: the first one's left edge is 0, and the last one's right edge is
    # its own number. What is absurdly far outside stays there without an overflow.
    return np.clip(written, -1e9, 1e9) - (1, 1, 0, 0)


# A VOC box of one pixel (xmin = xmax) doesn't occur: it is a slip of the mouse.
_VOC = Convention("object", _KEYS, _to_xyxy, min_side=1.0)


def _is_voc_folder(folder: Path) -> bool:
    if not (folder / "Annotations").is_dir():
        return False
    return (folder / "ImageSets" / "Main").is_dir() or _lists(folder) == [_ALL]


def _lists(folder: Path) -> list[str]:
    """The names of the lists of pictures; _ALL where there is none."""
    found = sorted(f.stem for f in (folder / "ImageSets" / "Main").glob("*.txt"))
    bare = not found and (folder / "JPEGImages").is_dir()
    return [_ALL] if bare and any((folder / "Annotations").glob("*.xml")) else found


def _locate(root: Path, split: str) -> tuple[Path, str]:
    """The VOC folder of a split and the name of its list."""
    if _is_voc_folder(root):
        return root, split
    match = re.fullmatch(r"(\d+)_(\w+)", split)
    if not match:
        raise UserError(f"{root}: expected a split like 2007_trainval, got '{split}'")
    return root / f"VOC{match[1]}", match[2]


def _scan_list(
    folder: Path, split: str, root: DataRoot, pictures: list[Picture], problems: list[Problem]
) -> None:
    for needed in (folder / "JPEGImages", folder / "Annotations", _list_path(folder, split)):
        root.require(needed)
    files = _picture_files(folder / "JPEGImages")
    names = _read_list(folder, split, files)
    for name in names:
        if name not in files:
            path = f"{folder}/JPEGImages/{name}.jpg"
            line = f"{path}: no such picture"
            problems.append(Problem(line, "missing-picture", path, picture=path))
    names = [name for name in names if name in files]
    for name, size in zip(names, picture_sizes([files[n] for n in names], root), strict=True):
        picture = files[name]
        if isinstance(size, UserError):
            problems.append(Problem(str(size), "broken-picture", picture, picture=picture))
            continue
        source = folder / "Annotations" / f"{name}.xml"
        root.require(source)
        try:
            labels = _read_xml(read_regular(source, limit=MAX_XML_BYTES))
        except UserError as error:
            problems.append(Problem(str(error), "broken-labels", source, picture=picture))
            continue
        kind = "broken-object" if labels.usable else "broken-labels"
        problems.extend(
            Problem(f"{source}: {line}", kind, source, number, picture)
            for number, line in labels.problems
        )
        if labels.usable:
            line = size_problem(labels.size, size)
            if line:
                kind = "wrong-size" if labels.size else "no-size"
                problems.append(Problem(f"{source}: {line}", kind, source, picture=picture))
            if labels.size in (None, size):  # else the boxes belong to some other picture
                pictures.append(Picture(str(picture), name, size, str(source), labels.objects))


def _list_path(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def _read_list(folder: Path, split: str, files: Mapping[str, Path]) -> list[str]:
    path = _list_path(folder, split)
    if split == _ALL and _lists(folder) == [_ALL] and not path.exists():
        return sorted(file.stem for file in (folder / "Annotations").glob("*.xml"))
    try:
        lines = [line.strip() for line in read_lines(path, limit=_MAX_LIST_BYTES)]
    except UserError as error:
        known = ", ".join(_lists(folder)) or "none"
        raise UserError(
            f"{path}: can't read this list of pictures; lists there: {known}"
        ) from error
    # The lists of one class have a second column: -1 says that the class isn't in the picture.
    names: list[str] = []
    for line in filter(None, lines):
        # A name may hold spaces, and even end like the second column.
        columns = None if line in files else re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
        if columns is None:
            names.append(line)
        elif columns[2] != "-1":
            names.append(columns[1])
    for name in names:
        if name in (".", "..") or re.search(r"[/\\:\0]", name):
            raise UserError(f"{path}: expected plain file names without a folder, got '{name}'")
    return names


def _picture_files(folder: Path) -> dict[str, Path]:
    """The picture of each name; of several formats the first of PICTURE_SUFFIXES."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of pictures")
    files = [f for f in folder.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES]
    files.sort(key=lambda f: (PICTURE_SUFFIXES.index(f.suffix.lower()), f.name), reverse=True)
    return {f.stem: f for f in files}


class _Labels(NamedTuple):
    size: tuple[float, float] | None  # height, width as the file says
    objects: list[Found]
    problems: list[tuple[int, str]]  # with the number of the object; 0: of the file
    usable: bool = True


def _read_xml(data: bytes) -> _Labels:
    try:
        root = parse_xml(data)
    # ValueError and LookupError: an encoding that Python doesn't know.
    except (expat.ExpatError, ValueError, LookupError) as error:
        return _Labels(None, [], [(0, f"not an XML file that can be read ({error})")], usable=False)
    if root.tag != "annotation":
        return _Labels(
            None, [], [(0, f"expected <annotation>, found <{root.tag:.80}>")], usable=False
        )
    objects: list[Found] = []
    problems: list[tuple[int, str]] = []
    # Only children, never descendants: a person's <part>s have names and boxes of their own.
    for number, element in enumerate(root.findall("object"), 1):
        found = _read_object(element, number)
        if isinstance(found, str):
            problems.append((number, found))
        else:
            objects.append(found)
    return _Labels(_read_size(root), objects, problems)


def parse_xml(data: bytes) -> ElementTree.Element:
    """The tree of an XML file; ValueError, LookupError or ExpatError for what is refused."""
    if data.count(b"<") > _MAX_XML_TAGS:
        raise ValueError(f"more than {_MAX_XML_TAGS:,} tags")
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.XmlDeclHandler = _check_encoding
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(data, True)
    return builder.close()


def _check_encoding(version: str, encoding: str | None, standalone: int) -> None:
    if encoding and not _ENCODING.fullmatch(encoding):
        raise ValueError(f"its encoding is '{encoding:.40}'; save it as UTF-8")


def _refuse_doctype(*declaration: object) -> None:
    raise ValueError("a document type declaration is not allowed")


def _read_object(element: ElementTree.Element, number: int) -> Found | str:
    """The object, or what is wrong with it."""
    name = (element.findtext("name") or "").strip()
    box = element.find("bndbox")
    if len(name) > _MAX_NAME or not name.isprintable():
        return f"object {number}: its name is {shown(name)}, expected a short printable text"
    if not name or box is None:
        return f"object {number} ('{name}'): no {'bndbox' if name else 'name'}"
    values: list[float] = []
    for key in _KEYS:
        text = box.findtext(key, "").strip()
        try:
            values.append(float(text))
        except ValueError:
            return f"object {number} ('{name}'): {key} is {shown(text)}, expected a number"
    try:
        difficult = int(element.findtext("difficult", "0"))
    except ValueError:
        difficult = 0  # labelling tools leave the tag out or write 'Unspecified' there
    return Found(number, name, (values[0], values[1], values[2], values[3]), bool(difficult))


def _read_size(root: ElementTree.Element) -> tuple[float, float] | None:
    """(height, width) as stated; None if there is none (tools write 0 for what they don't know)."""
    try:
        height = float(root.findtext("size/height", ""))
        width = float(root.findtext("size/width", ""))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None
