"""Drawn boxes are where they should be and nowhere else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.finding import found
from triscale.draw import (
    _caption_text,
    colour_of,
    contact_sheet,
    draw_detections,
    draw_truth,
    write_picture,
)
from triscale.lettering import default_font, font_for, text_patch

GREY = np.full((120, 160, 3), 90, np.uint8)


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


def shows(drawn: np.ndarray, patch: np.ndarray) -> bool:
    """Whether the patch is somewhere in the picture, whole and, but for rounding, unchanged."""
    return bool(cv2.matchTemplate(drawn, patch, cv2.TM_SQDIFF_NORMED).min() < 1e-4)


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        ([(40, 60, 100, 100), (40, 60, 100, 100)], (160, 240)),  # one on the other
        ([(0, 0, 160, 120), (2, 2, 160, 118)], (120, 160)),
        ([(40, 60, 100, 100), (50, 64, 110, 104), (44, 58, 90, 90)], (200, 300)),
        ([(300, 600, 900, 1000), (310, 610, 910, 990)], (1200, 1600)),
    ],
)
def test_captions_leave_each_other_alone(
    boxes: list[tuple[float, ...]], size: tuple[int, int]
) -> None:
    picture = np.full((*size, 3), 90, np.uint8)
    rows = [(*box, 0.9 - 0.1 * k, k) for k, box in enumerate(boxes)]
    drawn = draw_detections(picture, found(*rows), classes=("a", "b", "c"))
    for k in range(len(rows)):
        assert shows(drawn, _caption_text(k, "abc", 0.9 - 0.1 * k, picture))


def test_a_long_name_is_cut() -> None:
    patch = _caption_text(0, ("a name that is longer than the picture is wide",), 0.5, GREY)
    assert 100 < patch.shape[1] <= GREY.shape[1]
    drawn = draw_detections(GREY, found((150, 60, 159, 100, 0.5, 0)), classes=("long " * 9,))
    assert shows(drawn, _caption_text(0, ("long " * 9,), 0.5, GREY))


@pytest.mark.parametrize(("side", "line", "height"), [(100, 1, 12), (640, 2, 16), (4000, 10, 71)])
def test_everything_grows_with_the_picture(side: int, line: int, height: int) -> None:
    picture = np.full((side, side, 3), 90, np.uint8)
    box = (side * 0.2, side * 0.5, side * 0.8, side * 0.9)
    drawn = draw_detections(picture, found((*box, 0.9, 0)), classes=("name",))
    assert (drawn[round(side * 0.7), : side // 2] == colour_of(0)).all(1).sum() == line
    caption = _caption_text(0, ("name",), 0.9, picture)
    assert caption.shape[0] == pytest.approx(height, abs=2)
    assert shows(drawn[side // 3 : side // 2 + 10], caption)


def test_a_picture_smaller_than_its_text() -> None:
    picture = np.full((8, 6, 3), 90, np.uint8)
    drawn = draw_detections(picture, found((1, 1, 5, 7, 0.9, 0)), classes=("name",))
    assert drawn.shape == picture.shape


def test_odd_boxes() -> None:
    """Outside, upside down, of no size, of a class without a name: nothing is raised."""
    rows = [(-50, -50, -10, -10), (500, 500, 600, 600), (80, 80, 20, 20), (60, 60, 60, 60)]
    drawn = draw_detections(GREY, found(*((*row, 0.5, 9) for row in rows)), classes=("a",))
    assert drawn.shape == GREY.shape
    draw_truth(GREY, np.array(rows, np.float32))


# Their table of 2008: orange, sky blue, bluish green, yellow, blue, vermillion, reddish purple.
OKABE_ITO = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
# What is left of linear RGB without one kind of cone: Vienot, Brettel, Mollon, "Digital video
# colourmaps for checking the legibility of displays by dichromats" (1999).
DICHROMATS = {
    "none": np.eye(3),
    "protanopia": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deuteranopia": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.0223, 0.0223, 1]]),
}


def test_colours_are_the_published_ones() -> None:
    assert ["{:02X}{:02X}{:02X}".format(*colour_of(label)) for label in range(7)] == [*OKABE_ITO]
    assert len({colour_of(label) for label in range(21)}) == 21
    assert colour_of(21) == colour_of(0)


@pytest.mark.parametrize("eyes", DICHROMATS)
def test_colours_stay_apart(eyes: str) -> None:
    """In CIE Lab, where people see a difference of 2."""
    rgb = np.array([colour_of(label) for label in range(7)], np.float32) / 255
    seen = (rgb**2.2 @ DICHROMATS[eyes].T).clip(0, 1) ** (1 / 2.2)
    lab = cv2.cvtColor(seen[None].astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 100 * np.eye(7)
    assert distance.min() > 9


@pytest.mark.parametrize(
    "name", ["person", "Straße", "señal", "дорожный знак", "σήμα", "שלט", "لافتة", "Đường"]
)
def test_names_in_any_script(name: str) -> None:
    """The caption is another one than that of a box for each letter."""
    assert font_for(name) == default_font()
    drawn = draw_detections(GREY, found((5, 40, 80, 100, 0.9, 0)), classes=(name,))
    assert shows(drawn, _caption_text(0, (name,), 0.9, GREY))
    unknown = text_patch("\uffff" * len(name), 12, font=default_font(), colour=(9, 9, 9), margin=2)
    patch = text_patch(name, 12, font=default_font(), colour=(9, 9, 9), margin=2)
    assert patch.shape != unknown.shape or (patch != unknown).any()


def test_a_script_without_a_font() -> None:
    """The number of the class stands for its name."""
    name = "\U00012000\U00012001"  # cuneiform
    if font_for(name) is not None:
        pytest.skip("this machine has a font for cuneiform")
    row = (5, 40, 80, 100, 0.9, 1)
    drawn = draw_detections(GREY, found(row), classes=("a", name))
    assert np.array_equal(drawn, draw_detections(GREY, found(row), classes=("a", "#1")))


@pytest.mark.parametrize(("colour", "ink"), [((0, 0, 0), 255), ((255, 255, 255), 0)])
def test_text_is_black_or_white(colour: tuple[int, int, int], ink: int) -> None:
    patch = text_patch("I", 40, font=default_font(), colour=colour, margin=3)
    assert (patch == ink).all(2).any()
    assert (patch[:, :3] == colour).all(), "the margin"


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
