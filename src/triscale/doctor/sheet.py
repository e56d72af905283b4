"""The findings as a page with pictures: boxes drawn where they are, copies side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.data.pictures import read_picture
from triscale.doctor.examine import Report
from triscale.doctor.findings import KINDS, Box, Finding, count, grouped, in_words
from triscale.doctor.pictures import decoder_complaints
from triscale.errors import UserError
from triscale.page import Html, Section, details, escape, facts, figure, gallery, page, table

Image = NDArray[np.uint8]

PICTURES = 8  # of each kind
ROWS = 200  # of each kind; check.json has them all
_SIDE = 480  # pixels of a picture's longer side
_MARGIN = 0.3  # of it, at most, for boxes that leave the picture
_SMALL = 14  # pixels: what is smaller gets a ring around it
_COLOURS = {"error": (230, 60, 40), "warning": (240, 150, 0), "note": (30, 130, 230)}
_GREY = (128, 128, 128)


def sheet(report: Report) -> str:
    """The page."""
    counts = count(report.findings)
    sections = [Section("Overview", _overview(report))]
    for kind, found in grouped(report.findings).items():
        title = f"{KINDS[kind].title[0].upper()}{KINDS[kind].title[1:]} ({len(found)})"
        note = f"{KINDS[kind].severity}; what to do: {KINDS[kind].advice}"
        shown, rows = _pictures(found, report), _rows(found, report)
        more = f" (the first {ROWS}; check.json has all)" if len(found) > ROWS else ""
        rows = details(f"as a list{more}", rows) if shown else rows
        sections.append(Section(title, shown + rows, note))
    return page(f"Check of {Path(report.path).name}", lead=in_words(counts), sections=sections)


def _overview(report: Report) -> Html:
    counts = count(report.findings)
    tiles = facts(
        [
            *((f"{name}s", n) for name, n in counts.items()),
            ("format", report.format),
            ("classes", len(report.classes)),
            *((f"pictures in {split.role}", split.pictures) for split in report.splits),
            *((f"objects in {split.role}", split.objects) for split in report.splits),
            ("input size, pixels", report.size),
        ]
    )
    header = ("objects of", *(split.role for split in report.splits))
    return Html(tiles + table(header, report.class_rows()))


def _rows(found: Sequence[Finding], report: Report) -> Html:
    rows = [(f.split, short(f.path, report.path), f.object, f.what) for f in found[:ROWS]]
    return table(("split", "file", "object", "what"), rows)


def _pictures(found: Sequence[Finding], report: Report) -> Html:
    """The first pictures of a kind, each with all its boxes of this kind."""
    by_picture: dict[str, list[Finding]] = {}
    for finding in found:
        if finding.picture and finding.kind != "broken-picture":
            by_picture.setdefault(finding.picture, []).append(finding)
    figures: list[Html] = []
    for picture, group in by_picture.items():
        if len(figures) == PICTURES:
            break
        colour = _COLOURS[group[0].severity]
        try:
            image = _drawn(Path(picture), [f.box for f in group if f.box], colour)
            if other := group[0].other:
                image = _side_by_side(image, _drawn(Path(other), [], colour))
        except UserError:  # broken in one more way, which is told elsewhere
            continue
        names = "; ".join(f.object for f in group if f.object)
        caption = f"{short(picture, report.path)}: {names or group[0].what}"
        figures.append(figure(image, caption=escape(caption), width=2 * _SIDE))
    return gallery(figures) if figures else Html("")


def short(path: str, root: str) -> str:
    """A path below the data set, or as it is."""
    folder = root if os.path.isdir(root) else os.path.dirname(root)
    relative = os.path.relpath(path, folder) if path else ""
    return path if relative.startswith(os.pardir) else relative


def _drawn(path: Path, boxes: Sequence[Box], colour: tuple[int, int, int]) -> Image:
    """A picture at the size of the page, with a margin for boxes that leave it."""
    with decoder_complaints():  # they have been told
        image = read_picture(path)
    scale = _SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)
    scaled = np.array(boxes, np.float64).reshape(-1, 4) * scale
    most = round(_MARGIN * _SIDE)
    beyond = np.stack(
        [-scaled[:, 0], -scaled[:, 1], scaled[:, 2] - size[0], scaled[:, 3] - size[1]]
    )
    left, top, right, bottom = (
        np.ceil(beyond.max(1, initial=0) + 4).clip(0, most).astype(int).tolist()
        if (beyond > 1).any()
        else [0] * 4
    )
    image = np.asarray(
        cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=_GREY),
        np.uint8,
    )
    moved = scaled + np.array([left, top, left, top])
    # what is farther away than the margin shows at its edge
    for box in moved.clip(2, [image.shape[1] - 3, image.shape[0] - 3] * 2):
        x1, y1, x2, y2 = np.round(box).astype(int).tolist()
        for shade, line in (((0, 0, 0), 5), (colour, 3)):
            cv2.rectangle(image, (x1, y1), (x2, y2), shade, line, cv2.LINE_AA)
            if max(x2 - x1, y2 - y1) < _SMALL:
                centre = ((x1 + x2) // 2, (y1 + y2) // 2)
                cv2.circle(image, centre, _SMALL, shade, line, cv2.LINE_AA)
    return image


def _side_by_side(left: Image, right: Image) -> Image:
    height = max(left.shape[0], right.shape[0])
    parts = [
        cv2.copyMakeBorder(
            image, 0, height - image.shape[0], 0, gap, cv2.BORDER_CONSTANT, value=_GREY
        )
        for image, gap in ((left, 6), (right, 0))
    ]
    return np.asarray(cv2.hconcat(parts), np.uint8)
