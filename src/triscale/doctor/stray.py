"""Files of a data set that nothing refers to: labels without a picture, pictures in no split."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from triscale.data.build import Judged
from triscale.data.pictures import PICTURE_SUFFIXES
from triscale.doctor.findings import Finding
from triscale.errors import UserError
from triscale.files import read_lines

_MAX_BYTES = 10_000_000
_SHOWN = 3
_YOLO_ROW = re.compile(r"\s*\d+(\.0*)?(\s+[-+.\deE]+){4,}\s*$")


def stray_files(format: str, splits: Sequence[Judged]) -> list[Finding]:
    """Label files whose picture isn't there, and pictures that no split has."""
    used: dict[str, set[str]] = {}  # names of pictures by folder
    folders: dict[str, str] = {}  # of labels, each with that of its pictures
    for judged in splits:
        told = [problem.picture for problem in judged.scan.problems]
        for path in [*judged.rows.paths, *filter(None, told)]:
            folder, name = os.path.split(path)
            used.setdefault(folder, set()).add(name)
        if format != "coco":
            for path, source in zip(judged.rows.paths, judged.rows.sources, strict=True):
                folders.setdefault(os.path.dirname(source), os.path.dirname(path))
    found: list[Finding] = []
    there = {folder: _pictures(folder) for folder in {*used, *folders.values()}}
    for folder, names in sorted(used.items()):
        if unused := sorted(there[folder] - names):
            more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
            what = f"{len(unused)} in no split: {', '.join(unused[:_SHOWN])}{more}"
            first = os.path.join(folder, unused[0])
            found.append(Finding("unused-pictures", "", folder, "", what, picture=first))
    for folder, pictures in sorted(folders.items()):
        # a missing picture has been told of
        stems = {os.path.splitext(name)[0] for name in there[pictures] | used.get(pictures, set())}
        suffix = ".xml" if format == "voc" else ".txt"
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            stem, ending = os.path.splitext(name)
            path = os.path.join(folder, name)
            if ending == suffix and stem not in stems and (format == "voc" or _has_objects(path)):
                what = f"no picture {stem} in {pictures}"
                found.append(Finding("lonely-labels", "", path, "", what))
    return found


def _pictures(folder: str) -> set[str]:
    if not os.path.isdir(folder):
        return set()
    return {f for f in os.listdir(folder) if os.path.splitext(f)[1].lower() in PICTURE_SUFFIXES}


def _has_objects(path: str) -> bool:
    """Whether a text is a YOLO label file with an object: lists and notes may lie beside them."""
    try:
        rows = [row for row in read_lines(Path(path), limit=_MAX_BYTES) if row.strip()]
    except UserError:
        return False
    return bool(rows) and _YOLO_ROW.match(rows[0]) is not None
