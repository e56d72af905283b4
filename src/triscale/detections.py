"""What was found in one picture, for programs, files and people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.config import nearest
from triscale.draw import draw_detections
from triscale.errors import UserError

Image = NDArray[np.uint8]


class Detection(NamedTuple):
    """One object."""

    name: str  # of its class; `#3` where no names are known
    score: float
    box: tuple[float, float, float, float]  # xyxy in pixels of the picture
    label: int  # class index


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The detections of one picture, best first; each of them as a `Detection` by index or loop."""

    boxes: NDArray[np.float32]  # (K, 4) xyxy in pixels of the original picture
    scores: NDArray[np.float32]  # (K,)
    labels: NDArray[np.int64]  # (K,) class index
    classes: tuple[str, ...] = ()  # the names that `labels` count
    # Gives the RGB picture; a function, so that results of many files don't hold their pixels.
    picture: Callable[[], Image] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[k] for k in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> Detections: ...
    def __getitem__(self, index: int | slice | NDArray[Any]) -> Detection | Detections:
        """The detection of that rank, or those of a slice, a mask or an array of ranks."""
        if isinstance(index, (slice, np.ndarray)):
            rows = (self.boxes[index], self.scores[index], self.labels[index])
            return replace(self, boxes=rows[0], scores=rows[1], labels=rows[2])
        x1, y1, x2, y2 = self.boxes[index].tolist()
        label = int(self.labels[index])
        return Detection(self._name(label), float(self.scores[index]), (x1, y1, x2, y2), label)

    def __repr__(self) -> str:
        best = ", ".join(f"{found.name} {found.score:.2f}" for found in self[:5])
        more = ", ..." if len(self) > 5 else ""
        return f"<Detections: {len(self)}{': ' if best else ''}{best}{more}>"

    @property
    def names(self) -> list[str]:
        """The class name of each."""
        return [self._name(label) for label in self.labels.tolist()]

    def filter(
        self, min_score: float = 0.0, *, labels: str | int | Iterable[str | int] | None = None
    ) -> Detections:
        """Those with at least this score and, if given, of these classes (names or numbers)."""
        kept = self.scores >= min_score
        if labels is not None:
            kept &= np.isin(self.labels, label_numbers(labels, self.classes))
        return self[kept]

    def draw(self, image: Image | None = None) -> Image:
        """The picture, or another RGB array (H, W, 3), with boxes, names and scores on it."""
        if image is None:
            if self.picture is None:
                raise UserError("draw() needs the picture: these detections don't know theirs")
            image = self.picture()
        return draw_detections(image, self, classes=self.classes)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain values, as `triscale predict --json` writes them."""
        return [
            {
                "label": found.name,
                "score": round(found.score, 6),
                "box": [round(side, 2) for side in found.box],
            }
            for found in self
        ]

    def to_json(self) -> str:
        """`to_dicts` as JSON."""
        return json.dumps(self.to_dicts(), ensure_ascii=False)

    def to_coco(
        self, image_id: int, *, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Rows of a COCO results file; `category_ids` has one per class, by default 1, 2, ..."""
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[found.label] if category_ids else found.label + 1,
                "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(found.score, 6),
            }
            for found in self
            for x1, y1, x2, y2 in [found.box]
        ]

    def to_yolo(self, size: tuple[int, int]) -> str:
        """A line `class cx cy w h score` each, as parts of the (height, width) of the picture."""
        height, width = size
        lines: list[str] = []
        for found in self:
            x1, y1, x2, y2 = found.box
            box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width)
            sides = " ".join(f"{v:.6f}" for v in (*box, (y2 - y1) / height, found.score))
            lines.append(f"{found.label} {sides}\n")
        return "".join(lines)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the picture with the boxes, where it is known."""
        if self.picture is None:
            return None
        done, data = cv2.imencode(".png", cv2.cvtColor(self.draw(), cv2.COLOR_RGB2BGR))
        assert done
        return data.tobytes()

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else f"#{label}"


def label_numbers(labels: str | int | Iterable[str | int], classes: Sequence[str]) -> list[int]:
    """The class indices of names and numbers; UserError for a name that isn't among the classes."""
    numbers: list[int] = []
    for label in [labels] if isinstance(labels, (str, int)) else labels:
        if isinstance(label, str) and label not in classes:
            raise UserError(f"no class is named '{label}'{nearest(label, classes)}")
        numbers.append(classes.index(label) if isinstance(label, str) else label)
    return numbers
