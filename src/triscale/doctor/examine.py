"""The whole examination of a data set: labels, objects, classes, files, pictures, copies."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triscale.choosing import choose
from triscale.data.build import Judged, judge
from triscale.data.open import Data, scan_dataset
from triscale.doctor.duplicates import Pictures, find_duplicates
from triscale.doctor.findings import Finding, count, grouped
from triscale.doctor.labels import broken, classes, objects
from triscale.doctor.pictures import look_at_all
from triscale.doctor.stray import stray_files
from triscale.kmeans import flat
from triscale.log import Narrator
from triscale.model.yolo import skeleton
from triscale.recipe import Recipe


class Split(NamedTuple):
    """The numbers of a split."""

    role: str  # train, val
    name: str  # as the data set calls it
    pictures: int  # that can be read, as far as their headers say
    objects: int  # that can be used
    per_class: tuple[int, ...]


class Report(NamedTuple):
    """What was found in a data set."""

    path: str
    format: str
    classes: tuple[str, ...]
    splits: tuple[Split, ...]
    size: int  # of the network input that boxes were measured at
    findings: tuple[Finding, ...]

    def unreadable(self) -> list[str]:
        """The pictures that are there and can't be decoded."""
        return [f.path for f in self.findings if f.kind == "broken-picture"]

    def class_rows(self) -> list[tuple[str, *tuple[int, ...]]]:
        """Each class with its objects in each split."""
        return list(zip(self.classes, *(split.per_class for split in self.splits), strict=True))

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "data": self.path,
            "format": self.format,
            "size": self.size,
            "splits": {
                split.role: {
                    "name": split.name,
                    "pictures": split.pictures,
                    "objects": split.objects,
                    "classes": dict(zip(self.classes, split.per_class, strict=True)),
                }
                for split in self.splits
            },
            "counts": count(self.findings),
            "kinds": {kind: len(found) for kind, found in grouped(self.findings).items()},
            "findings": [finding.to_json() for finding in self.findings],
        }


def examine(
    path: Path,
    recipe: Recipe,
    *,
    base: Recipe | None = None,
    given: Collection[str] = (),
    workers: int = 0,
    narrator: Narrator | None = None,
) -> Report:
    """Look at everything in a data set.

    Boxes are measured at the size and with the anchors that `triscale train` would choose, unless
    they are among the keys that are `given`; see `choose`.
    """
    narrator = narrator or Narrator(enabled=False)
    scanned = scan_dataset(path, recipe.data)
    inclusive = recipe.data.inclusive_boxes
    judged = {
        role: judge(scan, scanned.classes, inclusive=inclusive)
        for role, scan in scanned.scans.items()
    }
    found: list[Finding] = []
    for role in ("train", "val"):
        if role not in judged:
            found.append(Finding("no-split", role, str(path), "", f"there is no {role} split"))
    for role, split in judged.items():
        found += broken(split, role)
    data = Data(
        scanned.format,
        scanned.root,
        scanned.classes,
        judged["train"].read.index if "train" in judged else None,
        judged["val"].read.index if "val" in judged else None,
        (),
    )
    if data.train is not None and len(data.train.boxes):
        recipe, _ = choose(recipe, data, given=given, base=base)
    own = recipe.model.anchors or skeleton(recipe.model, max(1, len(data.classes))).anchors
    for role, split in judged.items():
        found += objects(split, role, size=recipe.train.size, anchors=flat(own))
    splits = [_count(role, split) for role, split in judged.items()]
    found += classes({split.role: split.per_class for split in splits}, scanned.classes)
    found += stray_files(scanned.format, list(judged.values()))
    found += _pictures(judged, workers=workers, narrator=narrator)
    ordered = (finding for group in grouped(found).values() for finding in group)
    return Report(
        str(path), scanned.format, scanned.classes, tuple(splits), recipe.train.size, tuple(ordered)
    )


def _count(role: str, judged: Judged) -> Split:
    index = judged.read.index
    per_class = np.bincount(judged.labels[judged.faults == 0], minlength=len(index.classes))
    pictures = len(judged.rows.paths)
    return Split(role, index.name, pictures, int(per_class.sum()), tuple(per_class.tolist()))


def _pictures(judged: dict[str, Judged], *, workers: int, narrator: Narrator) -> list[Finding]:
    """All that needs the pixels."""
    places = [(role, path) for role, split in judged.items() for path in split.rows.paths]
    once = list(dict.fromkeys(path for _, path in places))
    narrator.begin("looking at the pictures", len(once))
    with narrator:
        looks = look_at_all(once, workers=workers, advance=lambda n: narrator.advance(amount=n))
    by_path = dict(zip(once, looks, strict=True))
    found: list[Finding] = []
    for role, path in dict.fromkeys(places):
        look = by_path[path]
        if look.error:
            found.append(Finding("broken-picture", role, path, "", look.error))
        if look.complaint:
            what = f"{look.complaint} (says the decoder)"
            found.append(Finding("damaged-picture", role, path, "", what, picture=path))
        for kind in look.kinds:
            found.append(Finding(kind, role, path, "", _STORED[kind], picture=path))
    readable = [(role, path) for role, path in places if not by_path[path].error]
    pictures = Pictures(
        [path for _, path in readable],
        [role for role, _ in readable],
        [by_path[path] for _, path in readable],
    )
    return [*found, *find_duplicates(pictures)]


_STORED = {
    "turned-picture": "its EXIF orientation turns or mirrors it",
    "grey-picture": "stored in grey",
    "cmyk-picture": "stored in CMYK",
    "deep-picture": "stored with 16 bits, of which 8 are used",
    "palette-picture": "stored with a palette",
    "alpha-picture": "stored with an alpha channel, which is left out",
    "misnamed-picture": "its content is of another format than its name",
}
