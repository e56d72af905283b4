"""Pictures of a validation that are worth a look: best, worst, and each kind of mistake.

Colours are Okabe and Ito's, which colour-blind people tell apart: green for what is right, red for
what isn't, yellow for objects that weren't found.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.data.index import Index
from triscale.data.loader import load
from triscale.draw import Colour, Image
from triscale.errors import UserError
from triscale.lettering import text_patch, writable
from triscale.metrics.analysis import Analysis
from triscale.metrics.voc import PackedDetections
from triscale.page import Html, figure, gallery

PICTURES = 8  # in each gallery: with WIDTH it bounds the size of the page
WIDTH = 480  # pixels
_RIGHT, _WRONG, _MISSED, _TRUE = (0, 158, 115), (213, 94, 0), (240, 228, 66), (255, 255, 255)
KEY = "Green: right. Red: wrong. Yellow: missed. Thin white: labels that were found."
_WHY = {
    "class": "wrong class",
    "location": "poor box",
    "both": "wrong class and poor box",
    "duplicate": "found twice",
    "background": "nothing there",
}


class Galleries(NamedTuple):
    """Titles with galleries, and a line for each picture that couldn't be shown."""

    parts: list[tuple[str, str, Html]]  # title, note, gallery
    lost: list[str]


def make_galleries(index: Index, packed: PackedDetections, analysis: Analysis) -> Galleries:
    """The galleries of a validation, as far as its pictures can be read."""
    painter = _Painter(index, packed, analysis)
    images = analysis.images
    # a good picture with many objects says more than one with a single one
    quality = np.nan_to_num(images.f1, nan=-1.0)
    good = np.lexsort((-images.tp, -quality))
    bad = np.lexsort((-(images.fp + images.fn), quality))
    best = [int(k) for k in good if images.tp[k] and quality[k] > 0][:PICTURES]
    wrong = images.fp + images.fn > 0
    worst = [int(k) for k in bad if wrong[k] and int(k) not in best][:PICTURES]
    parts: list[tuple[str, str, Html]] = []
    for title, note, figures in (
        ("Worst pictures", "The lowest F1 first.", map(painter.whole, worst)),
        (
            "Most confident mistakes",
            "Highest score first, one for each picture. Where the picture shows the object and the "
            "labels do not, the labels are wrong.",
            map(painter.mistake, painter.one_each(analysis.mistakes, packed.images)),
        ),
        (
            "Missed objects",
            "The largest first, one for each picture.",
            map(painter.missed, painter.one_each(analysis.missed, painter.image_of)),
        ),
        ("Best pictures", "The highest F1 first.", map(painter.whole, best)),
    ):
        shown = [each for each in figures if each is not None]
        if shown:
            parts.append((title, f"{note} {KEY}", gallery(shown)))
    return Galleries(parts, painter.lost)


class _Painter:
    """What the pictures are drawn from, and those that couldn't be."""

    def __init__(self, index: Index, packed: PackedDetections, analysis: Analysis) -> None:
        self.index, self.packed, self.analysis = index, packed, analysis
        self.image_of = np.repeat(np.arange(len(index)), np.diff(index.offsets))  # (G,)
        self.is_missed = np.zeros(len(index.boxes), np.bool_)
        self.is_missed[analysis.missed] = True
        self.lost: list[str] = []

    def one_each(self, rows: NDArray[np.intp], images: NDArray[np.integer]) -> list[int]:
        """The first rows, none of them in the picture of another."""
        _, first = np.unique(images[rows], return_index=True)
        return rows[np.sort(first)[:PICTURES]].tolist()

    def whole(self, place: int) -> Html | None:
        """A picture with everything in it."""
        images = self.analysis.images
        image = int(images.images[place])
        counts = f"{images.tp[place]} found, {images.fn[place]} missed, {images.fp[place]} wrong"
        return self._figure(image, f"{self.index.ids[image]}: {counts}")

    def mistake(self, row: int) -> Html | None:
        """A false detection and what is around it."""
        image = int(self.packed.images[row])
        kind = self.analysis.errors.kind_of[row]
        why = _WHY.get(self.analysis.errors.kinds[kind], "") if kind >= 0 else "wrong"
        name, score = self.index.classes[self.packed.labels[row]], self.packed.scores[row]
        caption = f"{name} {score:.2f}: {why} ({self.index.ids[image]})"
        return self._figure(image, caption, around=self.packed.boxes[row])

    def missed(self, row: int) -> Html | None:
        """An object that wasn't found and what is around it."""
        image, box = int(self.image_of[row]), self.index.boxes[row]
        name = self.index.classes[self.index.labels[row]]
        size = f"{box[2] - box[0]:.0f}x{box[3] - box[1]:.0f} pixels"
        return self._figure(image, f"{name}, {size} ({self.index.ids[image]})", around=box)

    def _caption(self, label: np.integer, more: str, colour: Colour) -> Image:
        name, font = writable(self.index.classes[label], int(label))
        return text_patch(f"{name}{more}", 12, font=font, colour=colour, margin=2)

    def _figure(
        self, image: int, caption: str, *, around: NDArray[np.floating] | None = None
    ) -> Html | None:
        try:
            pixels = load(self.index, image).image
        except UserError as error:
            self.lost.append(str(error))
            return None
        x, y, width, height = _window(pixels, around)
        scale = WIDTH / width
        part = cv2.resize(
            pixels[y : y + height, x : x + width],
            (WIDTH, max(1, round(height * scale))),
            interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
        )
        canvas = np.ascontiguousarray(part, np.uint8)
        corner = np.array([x, y, x, y])
        objects = self.index.objects(image)
        for row in range(objects.start, objects.stop):
            if not self.is_missed[row]:
                _outline(canvas, (self.index.boxes[row] - corner) * scale, _TRUE, width=1)
        captions: list[tuple[NDArray[np.floating], Image]] = []
        shown = self.packed.scores >= self.analysis.threshold
        kinds = self.analysis.errors.kind_of
        for row in np.flatnonzero((self.packed.images == image) & shown).tolist():
            box = (self.packed.boxes[row] - corner) * scale
            colour = _RIGHT if kinds[row] < 0 else _WRONG
            _outline(canvas, box, colour)
            if kinds[row] >= 0:
                score = f" {self.packed.scores[row]:.2f}"
                captions.append((box, self._caption(self.packed.labels[row], score, _WRONG)))
        for row in range(objects.start, objects.stop):
            box = (self.index.boxes[row] - corner) * scale
            if self.is_missed[row]:
                _outline(canvas, box, _MISSED)
                captions.append((box, self._caption(self.index.labels[row], "", _MISSED)))
        for box, patch in captions:  # on top of all boxes
            _write(canvas, box, patch)
        return figure(canvas, caption=caption, width=WIDTH)


def _window(pixels: Image, around: NDArray[np.floating] | None) -> tuple[int, int, int, int]:
    """x, y, width and height of the part to show: a box with much around it, else all."""
    height, width = pixels.shape[:2]
    if around is None:
        return 0, 0, width, height
    box = np.nan_to_num(around.astype(np.float64), posinf=0.0, neginf=0.0)
    side = max(box[2] - box[0], box[3] - box[1], 1.0)
    wide = int(np.clip(3 * side, 160, width)) if width > 160 else width
    high = min(height, round(wide * 0.75))
    x = int(np.clip((box[0] + box[2] - wide) / 2, 0, width - wide))
    y = int(np.clip((box[1] + box[3] - high) / 2, 0, height - high))
    return x, y, wide, high


def _outline(image: Image, box: NDArray[np.floating], colour: Colour, *, width: int = 2) -> None:
    """A box with a dark edge, so that it shows on any ground."""
    x1, y1, x2, y2 = np.clip(np.nan_to_num(box), -10_000, 10_000).round().astype(int).tolist()
    cv2.rectangle(image, (x1, y1), (x2, y2), (0, 0, 0), width + 1, cv2.LINE_AA)
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, width, cv2.LINE_AA)


def _write(image: Image, box: NDArray[np.floating], caption: Image) -> None:
    """A caption at the upper left corner of a box, inside the picture."""
    rows, columns = image.shape[:2]
    caption = caption[:rows, :columns]
    height, width = caption.shape[:2]
    x1, y1 = np.clip(np.nan_to_num(box[:2]), -10_000, 10_000).round().astype(int).tolist()
    left, top = min(max(x1, 0), columns - width), min(max(y1 - height, 0), rows - height)
    image[top : top + height, left : left + width] = caption
