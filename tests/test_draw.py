"""Drawn boxes are where they should be and nowhere else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from triscale.detections import Detections
from triscale.draw import contact_sheet, draw_detections, draw_truth, write_picture

GREY = np.full((120, 160, 3), 90, np.uint8)


def found(*rows: tuple[float, ...]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_nothing_to_draw() -> None:
    assert np.array_equal(draw_detections(GREY, found(), classes=("a",)), GREY)
    assert np.array_equal(draw_truth(GREY, np.zeros((0, 4), np.float32)), GREY)
    low = found((20, 60, 80, 100, 0.2, 0))
    assert np.array_equal(draw_detections(GREY, low, classes=("a",), min_score=0.3), GREY)


def test_a_box_and_its_caption() -> None:
    before = GREY.copy()
    drawn = draw_detections(GREY, found((20, 60, 80, 100, 0.9, 1)), classes=("a", "b"))
    assert np.array_equal(GREY, before), "the picture given is left alone"
    changed = (drawn != GREY).any(2)
    edge = np.zeros_like(changed)
    edge[60, 20:81] = edge[100, 20:81] = edge[60:101, 20] = edge[60:101, 80] = True
    assert changed[edge].all()
    assert not changed[63:98, 23:78].any(), "the inside stays visible"
    assert not changed[104:].any()
    assert changed[45:58].any(), "the caption is above the box"


@pytest.mark.parametrize(
    "box", [(0, 0, 160, 120), (0, 0, 10, 5), (150, 0, 160, 10), (0, 110, 160, 120)]
)
def test_captions_stay_inside(box: tuple[float, ...]) -> None:
    drawn = draw_detections(GREY, found((*box, 1.0, 0)), classes=("a long name",))
    assert drawn.shape == GREY.shape
    assert (drawn != GREY).any()


def test_truth_is_white() -> None:
    drawn = draw_truth(GREY, np.array([[20, 60, 80, 100]], np.float32))
    assert (drawn[60, 30:70] > 220).all()  # smoothed into the dark line around it
    assert (drawn[80, 50] == 90).all()


@pytest.mark.parametrize(("name", "tolerance"), [("p.png", 0), ("p.jpg", 6), ("p.JPG", 6)])
def test_write_picture(name: str, tolerance: int, tmp_path: Path) -> None:
    image = np.full((40, 50, 3), (200, 30, 100), np.uint8)
    write_picture(tmp_path / name, image)
    back = cv2.imread(str(tmp_path / name))[..., ::-1].astype(int)
    assert np.abs(back - image).max() <= tolerance  # red is still red


def test_contact_sheet() -> None:
    colours = (10, 60, 110)
    images = [np.full((30 + 10 * i, 40, 3), c, np.uint8) for i, c in enumerate(colours)]
    sheet = contact_sheet(images, columns=2, width=80)
    assert sheet.shape == (2 * 100, 2 * 80, 3)  # the tallest: 50 px at twice the size
    assert [sheet[5, 5, 0], sheet[5, 85, 0], sheet[105, 5, 0]] == list(colours)
    assert (sheet[105:, 85:] == 255).all()
