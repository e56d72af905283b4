"""What can be found in a data set, each kind with its weight and a way to mend it.

An error is what training refuses or stumbles over. A warning is what harms the result or the trust
in it. A note is a fact to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
Box = tuple[float, float, float, float]  # xyxy pixels


class Kind(NamedTuple):
    """A sort of finding."""

    severity: Severity
    title: str  # for several of it
    advice: str


KINDS: dict[str, Kind] = {
    # what the readers and data/build.py call broken, and pictures that can't be decoded
    "missing-picture": Kind(
        "error", "pictures that are missing", "add the picture, or take it out of the split"
    ),
    "broken-picture": Kind(
        "error", "pictures that can't be read", "get the file anew, or take it out of the split"
    ),
    "broken-labels": Kind(
        "error", "label files that are missing or can't be read", "write the label file anew"
    ),
    "broken-object": Kind("error", "objects that can't be read", "correct the entry, or delete it"),
    "broken-image": Kind(
        "error", "entries of pictures that can't be used", "correct the entry, or delete it"
    ),
    "broken-category": Kind(
        "error", "categories that can't be used", "give each category a whole number of its own"
    ),
    "unknown-class": Kind(
        "error", "objects of unknown classes", "correct the name, or add it to data.classes"
    ),
    "not-finite-box": Kind("error", "boxes that are no numbers", "draw the box anew, or delete it"),
    "empty-box": Kind("error", "boxes without an area", "draw the box anew, or delete it"),
    "no-area": Kind("error", "objects without an area", "correct the area, or delete the object"),
    "outside-box": Kind(
        "error", "boxes that leave their picture", "clip the box to the picture, or delete it"
    ),
    "wrong-size": Kind(
        "error",
        "labels made for a picture of another size",
        "put the original picture back, or label this one anew",
    ),
    "no-size": Kind(
        "error", "labels without the size of their picture", "write the size into the labels"
    ),
    # pictures
    "damaged-picture": Kind(
        "warning", "pictures with damaged data", "look at it, and get the file anew"
    ),
    "turned-picture": Kind(
        "note",
        "pictures that EXIF turns",
        "triscale turns them; make sure that the tool which drew the boxes did so too",
    ),
    "grey-picture": Kind("note", "grey pictures", "nothing; all three channels will be equal"),
    "cmyk-picture": Kind("note", "CMYK pictures", "convert to RGB: printing colours may look odd"),
    "deep-picture": Kind(
        "note", "pictures of 16 bits", "nothing, if the upper 8 bits show what matters"
    ),
    "palette-picture": Kind("note", "pictures with a palette", "nothing; they are read as RGB"),
    "alpha-picture": Kind(
        "note", "pictures with transparency", "nothing, if what is transparent may be seen"
    ),
    "misnamed-picture": Kind("note", "pictures named as another format", "rename the file"),
    # copies
    "leak": Kind(
        "warning",
        "pictures that are in train and in val",
        "take it out of one split: the metric is too good with it",
    ),
    "similar-leak": Kind(
        "warning",
        "pictures of val that look like one of train",
        "compare the two; keep pictures of one scene in one split",
    ),
    "listed-twice": Kind("warning", "pictures listed twice in a split", "delete one of the lines"),
    "copy": Kind("warning", "copies of a picture in one split", "delete one of the two"),
    "similar": Kind(
        "note", "pictures that look like another one of their split", "compare; delete if a copy"
    ),
    # files
    "lonely-labels": Kind(
        "warning", "label files without a picture", "add the picture, or delete the labels"
    ),
    "no-labels": Kind(
        "note",
        "pictures without a label file",
        "nothing, if it shows no object: an empty label file says so for sure",
    ),
    "unused-pictures": Kind(
        "note", "pictures that are in no split", "nothing, if they are meant to be left out"
    ),
    # objects
    "repeated-box": Kind("warning", "objects that are labelled twice", "delete one of the two"),
    "two-classes": Kind("warning", "boxes with two classes", "decide for one of the classes"),
    "whole-picture": Kind(
        "note", "boxes that cover their whole picture", "look whether it is meant"
    ),
    "tiny-box": Kind(
        "note", "boxes that become tiny in training", "train at a larger size, or delete the box"
    ),
    "odd-shape": Kind(
        "note",
        "boxes that no anchor fits",
        "look whether the box is right; if there are many, fit the anchors",
    ),
    "no-objects": Kind(
        "note", "pictures without objects", "nothing, if they show none of the classes"
    ),
    # classes and splits
    "similar-names": Kind(
        "warning", "class names that are nearly the same", "use one spelling everywhere"
    ),
    "absent-class": Kind(
        "warning", "classes that a split lacks", "move some pictures of the class to that split"
    ),
    "unused-class": Kind("note", "classes without any object", "delete the name, or label some"),
    "rare-class": Kind("warning", "classes with few objects", "label more of them"),
    "imbalance": Kind(
        "note", "classes far from balance", "collect more of the rare class, if it matters"
    ),
    "no-split": Kind("warning", "splits that are missing", "hold some pictures back for it"),
}


class Finding(NamedTuple):
    """One thing that was found."""

    kind: str  # of KINDS
    split: str  # train, val; '' for the set as a whole
    path: str  # the file to be looked at or mended
    object: str  # "object 3 ('dog')", "line 7"; '' for all of the file
    what: str
    picture: str = ""  # the picture that shows it
    box: Box | None = None  # where in the upright picture
    other: str = ""  # the picture to compare with

    @property
    def severity(self) -> Severity:
        """How much it weighs."""
        return KINDS[self.kind].severity

    @property
    def advice(self) -> str:
        """How to mend it."""
        return KINDS[self.kind].advice

    def line(self) -> str:
        """File, object and fault in one line."""
        return ": ".join(part for part in (self.path, self.object, self.what) if part)

    def to_json(self) -> dict[str, Any]:
        """The finding as one JSON object."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "split": self.split,
            "path": self.path,
            "object": self.object,
            "what": self.what,
            "advice": self.advice,
            "picture": self.picture,
            "box": None if self.box is None else [round(v, 2) for v in self.box],
            "other": self.other,
        }


def grouped(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """The findings by kind, in the order of KINDS, errors first."""
    groups: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        groups[finding.kind].append(finding)
    order = sorted(KINDS, key=lambda kind: SEVERITIES.index(KINDS[kind].severity))
    return {kind: groups[kind] for kind in order if groups[kind]}


def count(findings: Sequence[Finding]) -> dict[Severity, int]:
    """How many there are of each severity."""
    return {name: sum(f.severity == name for f in findings) for name in SEVERITIES}


def in_words(counts: Mapping[Severity, int]) -> str:
    """2 errors, 1 warning, 0 notes"""
    return ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items())
