"""A validation on disk: all that was found, and the labels that it is compared with.

With it a report needs neither the network nor the data set; only its pictures are the data's. The
labels are in the file because those on disk may change: a report is about what was measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.data.index import Index, PackedStrings
from triscale.detections import Detections
from triscale.errors import UserError
from triscale.evaluation import packed_truth
from triscale.files import ZIP_ERRORS, open_regular, replace_atomically
from triscale.metrics.analysis import Analysis, analyse
from triscale.metrics.voc import PackedDetections, PackedTruth, pack_detections

BEST, LAST = "detections_best.npz", "detections_last.npz"  # in a run folder
_FORMAT = "triscale-detections-1"
_MAX_BYTES = 1 << 33
_ARRAYS = ("sizes", "offsets", "boxes", "labels", "difficult", "crowd", "areas")  # of the index


class Found(NamedTuple):
    """A validation: what it was, and what was found in the pictures of the index."""

    about: Mapping[str, Any]  # JSON: epoch, step, metric, mAP, per_class, machine, ...
    # that it hides tuple.index harms nobody
    index: Index  # pyright: ignore[reportIncompatibleMethodOverride]
    detections: list[Detections]  # per picture, best first, original pixels


class Seen(NamedTuple):
    """A validation and what its analysis says."""

    found: Found
    packed: PackedDetections
    truth: PackedTruth
    analysis: Analysis


def examine(found: Found) -> Seen:
    """The analysis of a validation."""
    index = found.index
    packed = pack_detections(found.detections, range(len(index)))
    truth = packed_truth(index)
    analysis = analyse(packed, truth, num_classes=len(index.classes), inclusive=index.inclusive)
    return Seen(found, packed, truth, analysis)


def save_found(path: Path, found: Found) -> None:
    """Write a validation to `path`, atomically."""
    index = found.index
    counts = [len(each.scores) for each in found.detections]
    packed = pack_detections(found.detections, range(len(index)))
    about = {
        **found.about,
        "format": _FORMAT,
        "split": index.name,
        "classes": index.classes,
        "inclusive": index.inclusive,
        "paths": _absolute(index.paths),
        "ids": index.ids.prefix,
    }
    arrays: dict[str, NDArray[Any]] = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "paths": index.paths.data,
        "path_ends": index.paths.ends,
        "ids": index.ids.data,
        "id_ends": index.ids.ends,
        **{name: getattr(index, name) for name in _ARRAYS},
        "found_counts": np.asarray(counts, np.int64),
        "found_boxes": packed.boxes,
        "found_scores": packed.scores,
        "found_labels": packed.labels.astype(np.int32),
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would add a suffix to it
            np.savez(file, allow_pickle=False, **arrays)

    replace_atomically(path, write)


def load_found(path: Path) -> Found:
    """What `save_found` wrote; UserError if the file isn't whole."""
    try:
        with open_regular(path, limit=_MAX_BYTES) as file, np.load(file, allow_pickle=False) as z:
            arrays = {name: z[name] for name in z.files}
        about = json.loads(arrays.pop("about").tobytes())
        if about["format"] != _FORMAT:
            raise UserError(f"{path}: written by another version of triscale")
        index = Index(
            about["split"],
            tuple(about["classes"]),
            PackedStrings.of(arrays["paths"], arrays["path_ends"], about["paths"]),
            PackedStrings.of(arrays["ids"], arrays["id_ends"], about["ids"]),
            **{name: arrays[name] for name in _ARRAYS},
            inclusive=about["inclusive"],
        )
        ends = np.cumsum(arrays["found_counts"])
        fields = (arrays["found_boxes"], arrays["found_scores"], arrays["found_labels"])
        if len(ends) != len(index) or any(len(field) != ends[-1:].sum() for field in fields):
            raise ValueError("arrays of different lengths")
        parts = zip(*(np.split(field, ends[:-1]) for field in fields), strict=True)
        found = [
            Detections(boxes, scores, labels.astype(np.int64)) for boxes, scores, labels in parts
        ]
    except (*ZIP_ERRORS, LookupError, TypeError, MemoryError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it to measure anew") from error
    return Found(about, index, found[: len(index)])


def _absolute(paths: PackedStrings) -> str:
    """The prefix of paths that hold wherever the file is read."""
    relative = len(paths) and not os.path.isabs(paths[0])
    return os.path.join(os.getcwd(), paths.prefix) if relative else paths.prefix
