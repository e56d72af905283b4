"""Samples drawn: enlarged pixels, cells and boxes where they belong, captions inside."""

from __future__ import annotations

import numpy as np
import pytest

from tests.test_draw import shows
from triscale.lettering import default_font, font_for, text_patch
from triscale.preview.drawing import LOST, STRIDE_COLOURS, draw_seen, summary
from triscale.preview.seen import Pairs, Seen
from triscale.types import Draw


def made(
    rows: list[tuple[tuple[float, ...], int, tuple[int, int], bool, bool]] = [],  # noqa: B006
    *,
    weights: tuple[float, ...] = (),
    objects: tuple[int, ...] = (),
    size: tuple[int, int] = (192, 256),
) -> Seen:
    """A grey sample. A row is a pair: box, stride, cell, first, won; all anchors are 20x30."""
    number = len(rows)
    own = objects or tuple(range(number))
    boxes = {which: row[0] for which, row in zip(own, rows, strict=True)}
    table = np.array([boxes[k] for k in sorted(boxes)], np.float32).reshape(-1, 4)
    count = len(table)
    return Seen(
        step=7,
        draw=Draw(0, size, 0),
        size=size,
        image=np.full((*size, 3), 90, np.uint8),
        boxes=table,
        labels=np.zeros(count, np.int64),
        weights=np.array(weights or [1.0] * count, np.float32),
        overlaps=np.full(count, 0.6),
        pairs=Pairs(
            np.array(own, np.int64),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.int64).reshape(-1, 2),
            np.tile([20.0, 30.0], (number, 1)),
            np.array([row[3] for row in rows], np.bool_),
            np.array([row[4] for row in rows], np.bool_),
        ),
        cut_off=2,
        rows=count + 1,
        filled=0.25,
    )


def test_nothing_to_draw() -> None:
    drawn = draw_seen(made(), ["a"])
    assert drawn.shape[:2] == (192 * 4 + 58, 256 * 4)  # about 1000 pixels, and the legend
    assert (drawn[: 192 * 4] == 90).all()
    assert (drawn[192 * 4 :] != 90).any()


@pytest.mark.parametrize(("side", "scale"), [(32, 31), (224, 4), (320, 3), (416, 2), (608, 2)])
def test_pixels_are_repeated(side: int, scale: int) -> None:
    seen = made(size=(side, side))
    seen = seen._replace(image=np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    drawn = draw_seen(seen, ["a"])
    assert drawn.shape[1] == side * scale
    assert np.array_equal(drawn[: side * scale : scale, ::scale], seen.image)


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(pixels.astype(int) - colour).max(-1) < 40


def test_a_cell_its_anchor_and_its_box() -> None:
    box = (60.0, 70.0, 120.0, 110.0)
    drawn = draw_seen(made([(box, 16, (5, 5), True, True)]), ["a"])
    blue = STRIDE_COLOURS[16]
    assert near(drawn[70 * 4, 61 * 4 : 119 * 4], blue).all(), "the box"
    # the anchor about the centre 90, 90: 20 x 30, so from 75 to 105 pixels downwards
    row = drawn[75 * 4, 81 * 4 : 99 * 4]
    assert 0.3 < near(row, blue).mean() < 0.9, "dashed"
    inside = drawn[(5 * 16 + 8) * 4, (5 * 16 + 1) * 4 + 2]  # of cell 5, 5: half grey, half blue
    assert np.abs(inside.astype(int) - (90 + np.array(blue)) / 2).max() <= 1
    left = drawn[100:700, : 40 * 4]
    assert (left == 90).all(), "nothing elsewhere"
    assert not near(drawn, LOST)[: 192 * 4].any()


def test_what_is_lost_is_red_and_crossed_out() -> None:
    box = (60.0, 70.0, 120.0, 110.0)
    pairs = [(box, 16, (5, 5), True, False), ((0.0, 0.0, 30.0, 30.0), 16, (5, 5), True, True)]
    drawn = draw_seen(made(pairs), ["a"])
    assert near(drawn[110 * 4, 61 * 4 : 119 * 4], LOST).all()
    assert near(drawn[88 * 4 - 1 : 88 * 4 + 2, 88 * 4 - 1 : 88 * 4 + 2], LOST).any(), "the cross"
    assert "2 objects, 1 lost, 2 cut off" in summary(made(pairs))


def test_an_object_with_a_prediction_left_has_not_lost() -> None:
    box = (60.0, 70.0, 120.0, 110.0)
    pairs = [(box, 16, (5, 5), True, False), (box, 32, (2, 2), False, True)]
    seen = made(pairs, objects=(0, 0))
    assert seen.lost.tolist() == [False]
    assert seen.strides.tolist() == [16]
    drawn = draw_seen(seen, ["a"])
    assert near(drawn[70 * 4, 61 * 4 : 119 * 4], STRIDE_COLOURS[16]).all()


@pytest.mark.parametrize(
    "box", [(0, 0, 256, 192), (0, 0, 9, 5), (250, 0, 256, 9), (0, 188, 9, 192)]
)
def test_captions_stay_inside(box: tuple[float, ...]) -> None:
    name = "a name that is longer than all others " * 4
    drawn = draw_seen(made([(box, 32, (0, 0), True, True)], weights=(0.62,)), [name])
    assert drawn.shape == (192 * 4 + 58, 256 * 4, 3)
    assert near(drawn[: 192 * 4], STRIDE_COLOURS[32]).sum() > 500


def test_cells_of_sides_that_the_stride_does_not_divide() -> None:
    """A map of 3 columns over 72 pixels: 24 each, as the targets have it."""
    seen = made([((50.0, 50.0, 70.0, 70.0), 32, (2, 2), True, True)], size=(72, 72))
    drawn = draw_seen(seen, ["a"])
    scale = 14  # to about 1000 pixels
    orange = STRIDE_COLOURS[32]
    assert near(drawn[48 * scale, 72 * scale - 20], orange)
    assert not near(drawn[47 * scale - 2, 72 * scale - 20], orange)


@pytest.mark.parametrize(
    ("name", "written"), [("Hund", "Hund"), ("собака", "собака"), ("\U00012000", "#0")]
)
def test_names_in_any_script(name: str, written: str) -> None:
    """Cuneiform, for which there is hardly a font, is a number."""
    if name != written and font_for(name):
        pytest.skip("this machine has a font for cuneiform")
    drawn = draw_seen(made([((60.0, 70.0, 120.0, 110.0), 16, (5, 5), True, True)]), [name])
    blue = STRIDE_COLOURS[16]
    patch = text_patch(f"{written} s16", 13, font=default_font(), colour=blue, margin=3)
    assert shows(drawn, patch)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "step 7, 256x192: 0 objects, 2 cut off"),
        ({"partner": 3, "ratio": 0.62}, "step 7, 256x192: 0 objects, 2 cut off, mixup 0.62 + 0.38"),
        ({"tiles": (1, 2, 3)}, "step 7, 256x192: 0 objects, 2 cut off, mosaic"),
    ],
)
def test_summary(changes: dict[str, object], text: str) -> None:
    seen = made()
    assert summary(seen._replace(draw=seen.draw._replace(**changes))) == text
