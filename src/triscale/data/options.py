"""Which data to read and how strictly (the `[data]` section of a recipe)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from triscale.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """The `[data]` section."""

    path: str = ""  # the data set; DATA on the command line
    train: str = ""  # split(s) to train on, joined by '+'; empty: found by looking
    val: str = ""  # split(s) to validate on
    holdout: float = 0.1  # part of the training split held out where there is no other; 0: none
    classes: tuple[str, ...] = ()  # empty: from the data
    index_cache: bool = True  # COCO: keep a large set, once opened, in ~/.cache/triscale/index
    cache: Literal["", "ram", "disk"] = ""  # keep decoded pictures; see decoded.py
    cache_gib: float = 0.0  # at most so much of them; 0: half of what is free at the start
    outside: bool = False  # links and lists may lead out of the data set
    num_samples: int = 0  # train on the first N images of the seeded order; 0: all
    skip_bad: bool = False  # skip (and list) broken labels and pictures instead of refusing
    inclusive_boxes: bool = False  # the reference's convention: x2, y2 are the last pixel
    use_crowd: bool = False  # COCO, training: keep boxes around groups
    skip_empty: bool = True  # COCO, training: leave out pictures without objects
    min_object_area: float = 0.0  # COCO, training: leave out smaller objects (mask area in px)

    def __post_init__(self) -> None:
        if not 0 <= self.holdout <= 0.5:
            raise UserError(f"data.holdout: expected a part from 0 to 0.5, got {self.holdout}")
        for name in ("cache_gib", "num_samples", "min_object_area"):
            if not getattr(self, name) >= 0:
                raise UserError(f"data.{name}: expected at least 0, got {getattr(self, name)}")


def for_measuring(section: Mapping[str, Any]) -> dict[str, Any]:
    """The `[data]` section of weights, without what speaks of their training data alone."""
    own = (
        *("path", "train", "val", "classes", "num_samples", "skip_bad", "outside"),
        *("index_cache", "cache", "cache_gib"),
    )
    return {key: value for key, value in section.items() if key not in own}
