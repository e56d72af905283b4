"""Mosaics: what they show, found in their pixels, which know where they come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.data.tiny import make_sample, noise, write_index
from triscale.data.augment import AugmentConfig, apply_view
from triscale.data.cut import centre_inside
from triscale.data.loader import read
from triscale.data.mosaic import draw_tiles, join_tiles
from triscale.types import Draw, Sample

# Pixels that can be told apart afterwards.
STILL = AugmentConfig(colour=0, flip=0, interpolations=("nearest",), mosaic=1)
NONE = np.zeros((0, 4), np.float32)


def mosaic(
    samples: list[Sample], size: tuple[int, int], *, seed: int, config: AugmentConfig
) -> Sample:
    """A mosaic of four whole pictures."""
    pictures = [sample.original_size for sample in samples]
    boxes = [sample.boxes for sample in samples]
    rng = np.random.default_rng(seed)
    views = draw_tiles(rng, pictures, boxes, size=size, config=replace(config, fast_resize=False))
    return join_tiles([apply_view(s, v) for s, v in zip(samples, views, strict=True)])


# --- what is seen ---------------------------------------------------------------------------------


def signed(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture (below 256 x 256) whose pixels say x, y and the picture's number."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x, y, np.full_like(x, number)], -1).astype(np.uint8)


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_without_a_zoom_boxes_keep_their_pixels(size: tuple[int, int], flip: int) -> None:
    """Each corner of a box lies where the pixels say that it is."""
    config = replace(STILL, flip=flip, mosaic_scale=(1, 1))
    rows = [(3, 5, 20, 17, 1), (30, 2, 50, 40, 2), (0, 0, size[1], size[0], 3), (40, 30, 47, 46, 4)]
    samples = [make_sample(signed(number, size), rows) for number in range(4)]
    samples = [s._replace(weights=s.labels + 10 * np.float32(k)) for k, s in enumerate(samples)]
    kept = 0
    for seed in range(30):
        out = mosaic(samples, size, seed=seed, config=config)
        assert out.image.shape == (*size, 3)
        assert out.rectangle.tolist() == [0, 0, size[1], size[0]]
        number = out.image[..., 2].astype(int)
        assert (np.unique(number) == range(4)).all()
        expected: list[tuple[float, ...]] = []
        for k in range(4):
            ys, xs = np.nonzero(number == k)
            top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
            assert len(ys) == (bottom - top) * (right - left)  # a rectangle
            shown = out.image[top:bottom, left:right, :2].astype(int)
            x0, y0 = shown[..., 0].min(), shown[..., 1].min()
            for x1, y1, x2, y2, label in rows:
                x, y = (x1 + x2) / 2 - x0, (y1 + y2) / 2 - y0  # the centre, in the tile
                if not (0 <= x < right - left and 0 <= y < bottom - top):
                    continue
                a, b = max(x1 - x0, 0), min(x2 - x0, right - left)
                if flip:
                    a, b = right - left - b, right - left - a
                c, d = max(y1 - y0, 0), min(y2 - y0, bottom - top)
                corners = (left + a, top + c, left + b, top + d)
                expected.append((*corners, label, label + 10 * k))
        found = np.column_stack([out.boxes, out.labels, out.weights])
        np.testing.assert_allclose(found, np.reshape(expected, (-1, 6)), atol=1e-3)
        kept += len(expected)
    assert kept > 60


def test_a_moved_box_surrounds_its_object() -> None:
    """At any zoom, of pictures of any shape: a colour for each object."""
    sizes = [(150, 200), (200, 90), (40, 300), (128, 128)]
    corners = [[(0.1, 0.1, 0.4, 0.5), (0.6, 0.2, 0.9, 0.45), (0.3, 0.6, 0.75, 0.95)]] * 4
    samples: list[Sample] = []
    for k, ((height, width), parts) in enumerate(zip(sizes, corners, strict=True)):
        image = np.zeros((height, width, 3), np.uint8)
        rows: list[tuple[int, ...]] = []
        for j, (x1, y1, x2, y2) in enumerate(parts):
            a, b, c, d = (
                round(x1 * width),
                round(y1 * height),
                round(x2 * width),
                round(y2 * height),
            )
            image[b:d, a:c] = 60 * k + 10 * j + 5
            rows.append((a, b, c, d, 3 * k + j))
        samples.append(make_sample(image, rows))
    seen = np.zeros(12, int)
    for seed in range(60):
        out = mosaic(samples, (96, 128), seed=seed, config=replace(STILL, mosaic_scale=(0.3, 2)))
        for box, label in zip(out.boxes, out.labels.tolist(), strict=True):
            k, j = divmod(label, 3)
            ys, xs = np.nonzero(out.image[..., 0] == 60 * k + 10 * j + 5)
            edges = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_allclose(box, edges, rtol=0, atol=1.01)  # nearest: a pixel off
            seen[label] += 1
    assert (seen > 5).all()


@pytest.mark.parametrize(("size", "ratio"), [((120, 160), 1.0), ((160, 160), 4 / 3)])
def test_pictures_are_stretched_like_the_input_when_they_are_read_smaller(
    size: tuple[int, int], ratio: float, tmp_path: Path
) -> None:
    """Ramps, written as JPEG by Pillow: their slopes are the zoom across and down."""
    y, x = np.mgrid[:180, :240]
    pictures = [np.stack([x, y, np.full_like(x, 60 * k)], -1).astype(np.uint8) for k in range(4)]
    index = write_index(tmp_path, pictures, [[(100, 80, 116, 96, k)] for k in range(4)])
    for path, picture in zip(index.paths, pictures, strict=True):
        Image.fromarray(picture).save(path, "JPEG", quality=100, subsampling=0)
    config = replace(STILL, interpolations=("linear",), fast_resize=True, mosaic_scale=(0.5, 2))
    slopes: list[float] = []
    for seed in range(20):
        out = read(index, Draw(0, size, seed, tiles=(1, 2, 3)), config)
        assert out.image_id == 0
        assert out.original_size == (180, 240)
        for box, label in zip(out.boxes, out.labels.tolist(), strict=True):
            ys, xs = np.nonzero(np.abs(out.image[..., 2].astype(int) - 60 * label) < 20)
            across = np.polyfit(xs + 0.5, out.image[ys, xs, 0] + 0.5, 1)
            down = np.polyfit(ys + 0.5, out.image[ys, xs, 1] + 0.5, 1)
            assert across[0] == pytest.approx(ratio * down[0], rel=0.05)
            slopes.append(across[0])
            corners = np.polyval(across, box[[0, 2]]), np.polyval(down, box[[1, 3]])
            inside = xs.min() < box[0] and box[2] <= xs.max()
            if inside and ys.min() < box[1] and box[3] <= ys.max():  # else it was clipped
                np.testing.assert_allclose(corners, [(100, 116), (80, 96)], atol=2)
    assert min(slopes) < 0.9
    assert max(slopes) > 2  # read at half its size


# --- geometry -------------------------------------------------------------------------------------


@st.composite
def objects(draw: st.DrawFn, picture: tuple[int, int]) -> NDArray[np.float32]:
    """Up to three boxes with an area inside a picture (height, width)."""
    rows: list[tuple[float, ...]] = []
    for _ in range(draw(st.integers(0, 3))):
        ends = [
            sorted(draw(st.lists(st.floats(0, 1, width=16), min_size=2, max_size=2, unique=True)))
            for _ in range(2)
        ]
        (x1, x2), (y1, y2) = ends
        height, width = picture
        rows.append((x1 * width, y1 * height, x2 * width, y2 * height))
    return np.array(rows, np.float32).reshape(-1, 4)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_tiles_fill_the_input(data: st.DataObject) -> None:
    """Tiny and huge pictures of any shape, any input, any zoom."""
    side = st.one_of(st.integers(1, 4), st.integers(1, 20_000))
    pictures = data.draw(st.lists(st.tuples(side, side), min_size=4, max_size=4))
    boxes = [data.draw(objects(picture)) for picture in pictures]
    size = data.draw(st.tuples(st.integers(32, 700), st.integers(32, 700)))
    zooms = sorted(data.draw(st.tuples(*[st.floats(1e-3, 1e3)] * 2)))
    fast = data.draw(st.booleans())
    config = AugmentConfig(mosaic=1, mosaic_scale=(zooms[0], zooms[1]), fast_resize=fast)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    views = draw_tiles(rng, pictures, boxes, size=size, config=config)
    (top, left), (bottom, right) = views[0].size, views[3].size
    assert (views[1].size, views[2].size) == ((top, right), (bottom, left))
    assert (top + bottom, left + right) == size
    for (height, width), objects_here, view in zip(pictures, boxes, views, strict=True):
        for part, whole in zip(view.size, size, strict=True):
            assert whole / 4 - 1 < part < whole * 3 / 4 + 1
        np.testing.assert_array_equal(view.colour, views[0].colour)
        x, y, w, h = view.geometry.crop
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
        # stretched as the whole picture would be, up to a pixel of the crop
        across, down = (size[1] / width / view.size[1], size[0] / height / view.size[0])
        assert abs(w * across - h * down) <= max(across, down) + 1e-9
        assert not len(objects_here) or centre_inside(objects_here, view.geometry.crop).any()
        if view.place:
            x1, y1, x2, y2 = view.place.source
            assert x1 < x2
            assert y1 < y2
            assert view.place.target == (0, 0, view.size[1], view.size[0])
        assert (view.place is not None) == fast


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (64, 160)])
def test_odd_pictures(tmp_path: Path, size: tuple[int, int], fast: bool) -> None:
    """No object, one pixel, a row, a column."""
    pictures = [noise(50, 40), noise(1, 1), noise(1, 900), noise(900, 1)]
    rows: list[Any] = [[], [(0, 0, 1, 1, 7)], [(300, 0, 600, 1, 8)], [(0, 1, 1, 899, 9)]]
    index = write_index(tmp_path, pictures, rows)
    config = AugmentConfig(mosaic=1, fast_resize=fast)
    for seed in range(20):
        out = read(index, Draw(0, size, seed, tiles=(1, 2, 3)), config)
        assert out.image.shape == (*size, 3)
        assert out.image.dtype == np.uint8
        assert out.image.flags.c_contiguous
        assert set(out.labels.tolist()) == {7, 8, 9}
        assert (out.boxes >= 0).all()
        assert (out.boxes <= [size[1], size[0]] * 2).all()
        empty = read(index, Draw(0, size, seed, tiles=(0, 0, 0)), config)
        assert (empty.boxes.shape, empty.labels.shape, empty.weights.shape) == ((0, 4), (0,), (0,))
        assert (empty.boxes.dtype, empty.labels.dtype) == (np.float32, np.int64)


def test_zoom_and_corner_are_drawn_as_configured() -> None:
    rng, config = np.random.default_rng(0), AugmentConfig(mosaic=1, mosaic_scale=(1, 2))
    drawn = [
        draw_tiles(rng, [(1000, 1000)] * 4, [NONE] * 4, size=(400, 400), config=config)
        for _ in range(1000)
    ]
    corners = np.array([views[0].size for views in drawn])
    assert corners.min(0).tolist() == pytest.approx([100, 100], abs=2)
    assert corners.max(0).tolist() == pytest.approx([300, 300], abs=2)
    assert abs(corners.mean() - 200) < 6  # standard error: 1.3
    zooms = np.array([[v.size[0] / v.geometry.crop[3] / 0.4 for v in views] for views in drawn])
    assert np.ptp(zooms, 1).max() < 0.02  # one for all four
    assert 0.99 < zooms.min() < 1.01
    assert 1.98 < zooms.max() < 2.01
    assert abs(zooms.mean() - 1.5) < 0.05
    flips = np.mean([view.geometry.flip for views in drawn for view in views])
    assert abs(flips - 0.5) < 0.05


# --- joining --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "keep"),
    [
        ((3, 3, 5, 5), True),
        ((3, 3, 4.9, 9), False),
        ((3, 3, 9, 4.9), False),
        ((0, 0, 10, 10), True),
    ],
)
def test_boxes_that_became_too_small_are_dropped(box: tuple[float, ...], keep: bool) -> None:
    blank = make_sample(noise(10, 10), [])
    tile = make_sample(noise(10, 10), [(*box, 4)])
    out = join_tiles([blank, blank, blank, tile])
    assert out.boxes.tolist() == ([np.float32(np.add(box, 10)).tolist()] if keep else [])
    assert out.labels.tolist() == [4] * keep
    assert out.weights.tolist() == [1] * keep


def test_tiles_by_hand() -> None:
    sizes = [(2, 3), (2, 5), (6, 3), (6, 5)]
    tiles = [make_sample(np.full((*s, 3), k, np.uint8), []) for k, s in enumerate(sizes)]
    tiles[0] = tiles[0]._replace(image_id=9, original_size=(70, 80), colour=np.ones((3, 4)))
    out = join_tiles(tiles)
    expected = [[0] * 3 + [1] * 5] * 2 + [[2] * 3 + [3] * 5] * 6
    assert out.image[..., 1].tolist() == expected
    assert (out.image_id, out.original_size) == (9, (70, 80))
    assert out.colour.tolist() == np.ones((3, 4)).tolist()
    assert out.rectangle.tolist() == [0, 0, 8, 8]
