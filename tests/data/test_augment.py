"""Transforms: what they promise, against slow and obvious ways to do the same.

The reference's own runs are compared with in test_augment_reference.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.data.crop_oracle import PythonDice, crop_one_by_one, keeps_centre
from tests.data.tiny import make_sample, noise
from triscale.boxes import pairwise_iou
from triscale.data.augment import (
    AugmentConfig,
    draw_colour,
    draw_geometry,
    hue_matrix,
    random_crop,
    saturation_matrix,
    train_transform,
    val_transform,
)
from triscale.data.cut import (
    Geometry,
    Interpolation,
    Place,
    cut,
    find_place,
    interpolation_for,
    mix,
    move_boxes,
    paste,
    resize,
)
from triscale.data.loader import collate
from triscale.data.pictures import read_picture, reduced
from triscale.errors import UserError
from triscale.normalise import network_input
from triscale.pixels import FILL, InputConfig

TWO = [(10.0, 12.0, 60.0, 50.0), (30.0, 5.0, 70.0, 58.0)]


# --- colour --------------------------------------------------------------------------------------


def test_colour_matrices_by_hand() -> None:
    np.testing.assert_allclose(saturation_matrix(1), np.eye(3))
    np.testing.assert_allclose(saturation_matrix(0) @ [100, 0, 0], [29.9] * 3)
    np.testing.assert_allclose(hue_matrix(0), np.eye(3), atol=0.002)  # YIQ has three digits
    turned = hue_matrix(np.deg2rad(30)) @ hue_matrix(np.deg2rad(-30))
    np.testing.assert_allclose(turned, np.eye(3), atol=0.005)
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(luma @ hue_matrix(1) @ [200, 10, 90], luma @ [200, 10, 90], atol=0.5)


def test_colour_is_drawn_as_configured() -> None:
    rng = np.random.default_rng(1)
    matrices = np.array([draw_colour(rng, AugmentConfig()) for _ in range(4000)])
    assert matrices.dtype == np.float32
    # A grey of 100 keeps its colour: only brightness and contrast act on it.
    contrast = matrices[:, :, :3].sum(-1).mean(-1)
    brightness = matrices[:, :, 3].mean(-1) / contrast
    for values, low, high, unchanged in ((contrast, 0.5, 1.5, 1), (brightness, -32, 32, 0)):
        still = np.isclose(values, unchanged, atol=0.002)
        assert abs(still.mean() - 0.5) < 0.04  # five standard errors
        drawn = values[~still]
        assert abs(drawn.mean() - (low + high) / 2) < 0.03 * (high - low)
        assert low - 0.01 < drawn.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < drawn.max() < high + 0.01
    none = draw_colour(rng, AugmentConfig(colour=0))
    np.testing.assert_array_equal(none, np.eye(3, 4))


def test_hue_turns_by_at_most_its_degrees() -> None:
    rng = np.random.default_rng(2)
    config = AugmentConfig(colour=1, brightness=0, contrast=0, saturation=0)
    to_iq = np.array([[0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    i, q = to_iq @ [255, 0, 0]
    turned = np.array([to_iq @ draw_colour(rng, config)[:, :3] @ [255, 0, 0] for _ in range(1000)])
    degrees = np.rad2deg(np.arctan2(turned[:, 1], turned[:, 0]) - np.arctan2(q, i))
    assert -18.2 < degrees.min() < -17.5
    assert 17.5 < degrees.max() < 18.2


# --- crop ----------------------------------------------------------------------------------------


def crop_statistics(crops: list[tuple[int, int, int, int]], boxes: Any) -> NDArray[np.float64]:
    """(n, 13): for each crop, what we compare the means of."""
    x, y, w, h = np.array(crops, np.float64).T
    area, aspect = w * h / 4800, np.log(w / h)
    columns = [w == 80, area, area**2, x, y, aspect, aspect**2, x * w / 80]
    if boxes:
        corners = np.stack([x, y, x + w, y + h], -1).astype(np.float32)
        least = pairwise_iou(corners, np.array(boxes, np.float32)).min(1)
        columns += [least >= minimum for minimum in (0.1, 0.3, 0.5, 0.7, 0.9)]
    return np.stack(columns, -1).astype(np.float64)


@pytest.mark.parametrize("boxes", [[], TWO[:1], TWO, [(2.0, 2.0, 12.0, 14.0)]])
def test_crops_are_distributed_as_if_drawn_one_by_one(boxes: Any) -> None:
    rng, dice, number = np.random.default_rng(3), PythonDice(4), 1500
    array = np.array(boxes, np.float32).reshape(-1, 4)
    ours = crop_statistics([random_crop(rng, (60, 80), array) for _ in range(number)], boxes)
    oracle = [crop_one_by_one(dice, (60, 80), boxes) for _ in range(number)]
    theirs = crop_statistics(oracle, boxes)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / number)
    gap = np.abs(ours.mean(0) - theirs.mean(0))
    assert (gap <= 4 * error).all(), gap / error


@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((60, 80), []),
        ((1, 1), []),
        ((1, 1), [(0, 0, 1, 1)]),
        ((3, 500), [(490, 0, 500, 3)]),
        ((60, 80), TWO),
        ((60, 80), [(0, 0, 4, 4), (70, 50, 80, 60)]),
        ((60, 80), [(200, 200, 210, 210)]),  # beside the picture: keeping it is impossible
    ],
)
def test_crops_lie_inside_and_keep_an_object(size: tuple[int, int], boxes: Any) -> None:
    rng, array = np.random.default_rng(5), np.array(boxes, np.float32).reshape(-1, 4)
    for _ in range(200):
        crop = random_crop(rng, size, array)
        x, y, w, h = crop
        assert 0 <= x < x + w <= size[1]
        assert 0 <= y < y + h <= size[0]
        if crop == (0, 0, size[1], size[0]):
            continue
        # 0.3 of the side at the least, less one pixel cut off and the widest aspect's square root
        assert w + 1 > 0.3 * size[1] / 2**0.5
        assert h + 1 > 0.3 * size[0] / 2**0.5
        assert not boxes or any(keeps_centre(crop, box) for box in boxes)


def test_free_crops_have_every_scale_and_aspect() -> None:
    rng, none = np.random.default_rng(7), np.zeros((0, 4), np.float32)
    crops = np.array([random_crop(rng, (6000, 8000), none) for _ in range(3000)], np.float64)
    width, height = crops[:, 2] / 8000, crops[:, 3] / 6000
    scale, aspect = np.sqrt(width * height), width / height
    assert (aspect > np.maximum(0.5, scale**2) - 0.002).all()
    assert (aspect < np.minimum(2, 1 / scale**2) + 0.002).all()
    assert 0.299 < scale.min() < 0.302  # 0.3 to 1 in 3000 draws
    assert 0.998 < scale.max() <= 1
    assert aspect.min() < 0.51
    assert aspect.max() > 1.98
    assert abs(scale.mean() - 0.65) < 0.015


def every_trial(
    rng: np.random.Generator, size: tuple[int, int], boxes: NDArray[np.float32]
) -> tuple[int, int, int, int]:
    """`random_crop` with the IoU of every trial with every box."""
    height, width = size
    scale = rng.uniform(0.3, 1, (6, 50))
    aspect = rng.uniform(np.maximum(0.5, scale**2), np.minimum(2, 1 / scale**2))
    heights = (height * scale / np.sqrt(aspect)).astype(np.int64).clip(1)
    widths = (width * scale * np.sqrt(aspect)).astype(np.int64).clip(1)
    tops, lefts = (rng.integers((a - b).clip(1)) for a, b in ((height, heights), (width, widths)))
    candidates = [(0, 0, width, height)]
    for row, minimum in enumerate((0.1, 0.3, 0.5, 0.7, 0.9, -np.inf)):
        for x, y, w, h in np.stack([lefts, tops, widths, heights], -1)[row].tolist():
            corners = np.array([[x, y, x + w, y + h]], np.float32)
            if pairwise_iou(corners, boxes).min() >= minimum:
                candidates.append((x, y, w, h))
                break
    for choice in rng.permutation(len(candidates)):
        if any(keeps_centre(candidates[choice], box) for box in boxes.tolist()):
            return candidates[choice]
    return candidates[0]


@pytest.mark.parametrize("seed", range(60))
def test_trials_that_are_ruled_out_early_would_have_failed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, number = (int(rng.integers(1, 400)), int(rng.integers(1, 400))), 1 + seed % 4
    # From tiny to nearly the whole picture, some on a canvas far larger than its picture.
    sides = rng.uniform(size=(number, 2)) ** (0.1, 1, 4)[seed % 3] * (size[1], size[0])
    corners = rng.uniform(size=(number, 2)) * ((size[1], size[0]) - sides)
    boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
    expected = every_trial(np.random.default_rng(seed), size, boxes)
    assert random_crop(np.random.default_rng(seed), size, boxes) == expected


def test_crops_are_a_function_of_the_generator() -> None:
    array = np.array(TWO, np.float32)
    crops = [random_crop(np.random.default_rng(s), (60, 80), array) for s in (*range(9), *range(9))]
    assert crops[:9] == crops[9:]
    assert len(set(crops)) > 4


# --- geometry ------------------------------------------------------------------------------------


def whole_canvas(image: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """The crop by way of the whole canvas: the slow and obvious way."""
    canvas = np.full((*geometry.canvas, 3), FILL, np.uint8)
    (left, top), (x, y, w, h) = geometry.offset, geometry.crop
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas[y : y + h, x : x + w]


@pytest.mark.parametrize("seed", range(60))
def test_cut_is_a_crop_of_the_canvas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = noise(20, 30, seed=seed)
    boxes = np.array([(3, 4, 20, 15)], np.float32)[: seed % 2]
    geometry = draw_geometry(rng, (20, 30), boxes, config=AugmentConfig(flip=0))
    crop = whole_canvas(image, geometry)
    same_size, _ = cut(image, geometry, (crop.shape[0], crop.shape[1]))
    np.testing.assert_array_equal(same_size, crop)
    resized, rectangle = cut(image, geometry, (48, 64))
    expected = resize(crop, (48, 64), interpolation=geometry.interpolation)
    np.testing.assert_array_equal(resized, expected)
    flipped, turned = cut(image, geometry._replace(flip=True), (48, 64))
    np.testing.assert_array_equal(flipped, expected[:, ::-1])
    np.testing.assert_allclose(turned, [64, 0, 64, 0] - rectangle[[2, 1, 0, 3]] * [1, -1, 1, -1])
    # The rectangle is the box around the whole picture, moved as any box.
    around, _ = move_boxes(np.array([(0, 0, 30, 20)], np.float32), geometry, (48, 64))
    if around[0, 0] < around[0, 2] and around[0, 1] < around[0, 3]:
        np.testing.assert_allclose(rectangle, around[0], atol=1e-4)
    else:
        assert rectangle.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("interpolation", ["nearest", "area"])
@pytest.mark.parametrize("flip", [False, True])
def test_paste_equals_cut_where_borders_fall_on_whole_pixels(
    interpolation: Interpolation, flip: bool
) -> None:
    image = noise(20, 30)
    for canvas, offset, crop in (
        ((20, 30), (0, 0), (0, 0, 30, 20)),
        ((60, 90), (14, 22), (0, 0, 90, 60)),
        ((60, 90), (14, 22), (22, 4, 36, 24)),
        ((80, 80), (50, 50), (0, 0, 40, 30)),  # beside the picture
    ):
        geometry = Geometry(canvas, offset, crop, interpolation, flip)
        size = crop[3] // 2, crop[2] // 2
        place = find_place(geometry, (20, 30), size, reduce=False)
        for ours, expected in zip(
            paste(image, geometry, size, place=place), cut(image, geometry, size), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("reduce", [False, True])
def test_places(reduce: bool) -> None:
    """Inside of both pictures, as near to `cut` as whole pixels can be, and never magnified."""
    boxes, seen = np.array([(10, 20, 200, 150), (150, 60, 390, 290)], np.float32), set[int]()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(32, 200)), int(rng.integers(32, 200))
        geometry = draw_geometry(rng, (301, 399), boxes, config=AugmentConfig())
        place = find_place(geometry, (301, 399), size, reduce=reduce)
        (x1, y1, x2, y2), (left, top, right, bottom) = place.source, place.target
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]
        rows, columns = reduced((301, 399), place.reduction)
        assert 0 <= x1 < x2 <= columns
        assert 0 <= y1 < y2 <= rows
        if place.reduction > 1:
            assert x2 - x1 >= right - left
            assert y2 - y1 >= bottom - top
        _, rectangle = cut(noise(301, 399), geometry._replace(flip=False), size)
        np.testing.assert_allclose(place.target, rectangle, rtol=0, atol=0.501)
        exact, kept = move_boxes(boxes, geometry, size)
        moved, keep = move_boxes(boxes, geometry, size, place=place)
        np.testing.assert_array_equal(keep, kept)
        np.testing.assert_allclose(moved[keep], exact[keep], rtol=0, atol=1.6)
        seen.add(place.reduction)
    assert seen == ({1, 2, 4, 8} if reduce else {1})


def test_a_sliver_is_still_a_pixel() -> None:
    geometry = Geometry((400, 400), (399, 0), (0, 0, 400, 400), "linear", flip=False)
    place = find_place(geometry, (400, 1), (32, 32), reduce=True)
    assert place == Place(1, (0, 0, 1, 400), (31, 0, 32, 32))


@pytest.mark.parametrize(
    ("box", "keep"),
    [
        ((20, 10, 20, 15), False),  # no width
        ((20, 10, 25, 10), False),  # no height
        ((8, 8, 12, 12), True),  # the centre on the first pixel's edge
        ((28, 8, 32, 12), False),  # the centre on the edge behind the last pixel
        ((0, 0, 19, 30), False),
        ((0, 0, 21, 30), True),
    ],
)
def test_a_box_stays_while_its_centre_is_in_the_crop(
    box: tuple[int, int, int, int], keep: bool
) -> None:
    geometry = Geometry((30, 40), (0, 0), (10, 10, 20, 20), "linear", flip=False)
    moved, kept = move_boxes(np.array([box], np.float32), geometry, (40, 40))
    assert kept.tolist() == [keep]
    assert (moved >= 0).all()
    assert (moved <= 40).all()


def test_a_crop_beside_the_picture_is_fill() -> None:
    geometry = Geometry((80, 80), (50, 50), (0, 0, 40, 30), "linear", flip=True)
    image, (x1, y1, x2, y2) = cut(noise(20, 20), geometry, (32, 32))
    assert (image == FILL).all()
    assert (x1, y1) == (x2, y2)  # nowhere


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ((30, 40), "linear"),
        ((31, 41), "cubic"),
        ((29, 39), "area"),
        ((31, 40), "linear"),
        ((29, 40), "linear"),
        ((29, 41), "linear"),
    ],
)
def test_interpolation_of_validation(new: tuple[int, int], expected: Interpolation) -> None:
    assert interpolation_for((30, 40), new) == expected


def test_geometry_is_drawn_as_configured() -> None:
    rng, boxes = np.random.default_rng(6), np.zeros((0, 4), np.float32)
    config = AugmentConfig(interpolations=("linear", "area"))
    drawn = [draw_geometry(rng, (60, 80), boxes, config=config) for _ in range(2000)]
    ratios = np.array([g.canvas[0] / 60 for g in drawn])
    assert abs((ratios > 1).mean() - 0.5) < 0.05
    assert 3.95 < ratios.max() <= 4
    assert abs(ratios[ratios > 1].mean() - 2.5) < 0.1
    for g in drawn:
        assert 0 <= g.offset[0] <= g.canvas[1] - 80
        assert 0 <= g.offset[1] <= g.canvas[0] - 60
    assert abs(np.mean([g.flip for g in drawn]) - 0.5) < 0.05
    assert abs(np.mean([g.interpolation == "area" for g in drawn]) - 0.5) < 0.05
    off = AugmentConfig(expand=0, crop=False, flip=0, interpolations=("cubic",))
    assert draw_geometry(rng, (60, 80), boxes, config=off) == Geometry(
        (60, 80), (0, 0), (0, 0, 80, 60), "cubic", flip=False
    )


# --- whole transforms ----------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True])
def test_a_moved_box_surrounds_its_object(fast: bool) -> None:
    image = np.zeros((600, 800, 3), np.uint8)
    image[200:450, 300:640] = 255
    sample = make_sample(image, [(300, 200, 640, 450, 2)])
    config = AugmentConfig(colour=0, interpolations=("nearest",), fast_resize=fast)
    for seed in range(60):
        out = train_transform(sample, (96, 128), rng=np.random.default_rng(seed), config=config)
        assert out.labels.tolist() == [2]  # a crop keeps some object's centre: there is but one
        rows, columns = np.nonzero((out.image == 255).all(-1))
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(out.boxes[0], seen, rtol=0, atol=1.01)  # nearest: a pixel off


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("rows", [[], [(1, 2, 30, 25, 1), (5, 5, 6, 9, 0), (20, 1, 39, 29, 2)]])
def test_train_transform_keeps_labels_with_their_boxes(rows: Any, fast: bool) -> None:
    sample = make_sample(noise(30, 40), rows)
    sample = sample._replace(weights=np.arange(len(rows), dtype=np.float32))
    config = AugmentConfig(fast_resize=fast)
    for seed in range(50):
        results = [
            train_transform(sample, (32, 64), rng=np.random.default_rng(seed), config=config)
            for _ in range(2)
        ]
        for first, second in zip(*results, strict=True):
            np.testing.assert_array_equal(first, second)
        out = results[0]
        assert out.image.shape == (32, 64, 3)
        assert out.image.dtype == np.uint8
        assert len(out.boxes) == len(out.labels) == len(out.weights) >= bool(rows)
        assert out.boxes.dtype == np.float32
        assert (out.boxes[:, :2] < out.boxes[:, 2:]).all()
        assert (out.boxes >= 0).all()
        assert (out.boxes <= [64, 32, 64, 32]).all()
        assert out.labels.tolist() == [rows[int(w)][4] for w in out.weights]


@pytest.mark.parametrize("rows", [[], [(0, 0, 40, 30, 1), (4, 6, 10, 9, 0)]])
def test_val_transform(rows: Any) -> None:
    out = val_transform(make_sample(noise(30, 40), rows), (60, 160))
    assert out.image.shape == (60, 160, 3)
    assert out.rectangle.tolist() == [0, 0, 160, 60]
    assert out.boxes.tolist() == [[x1 * 4, y1 * 2, x2 * 4, y2 * 2] for x1, y1, x2, y2, _ in rows]
    np.testing.assert_array_equal(out.colour, np.eye(3, 4))


@pytest.mark.parametrize("rows", [[], [(0, 0, 40, 30, 1), (4, 6, 10, 9, 0)]])
def test_letterbox(rows: Any) -> None:
    out = val_transform(make_sample(noise(30, 40), rows), (160, 160), fit="letterbox")
    assert out.image.shape == (160, 160, 3)
    assert out.rectangle.tolist() == [0, 20, 160, 140]
    expected = [[x1 * 4, y1 * 4 + 20, x2 * 4, y2 * 4 + 20] for x1, y1, x2, y2, _ in rows]
    assert out.boxes.tolist() == expected
    np.testing.assert_array_equal(out.image[20, [0, -1]], noise(30, 40)[0, [0, -1]])  # corners
    np.testing.assert_array_equal(out.image[139, [0, -1]], noise(30, 40)[-1, [0, -1]])


@pytest.mark.parametrize("picture", ["dog", "person", "street_small"])
def test_letterbox_equals_darknets(picture: str, shared: Path) -> None:
    """Up to the rounding to bytes: half a grey level and float32's own."""
    image = read_picture(shared / "data" / "pictures" / f"{picture}.jpg")
    sample = val_transform(make_sample(image, []), (416, 416), fit="letterbox")
    ours = network_input(collate([sample]), InputConfig("unit", "letterbox"))[0]
    with np.load(shared / "oracles" / "darknet-tiny" / "tensors.npz") as arrays:
        difference = 255 * np.abs(ours.numpy() - arrays[f"{picture}_input"])
    assert difference.max() < 0.505


def test_mixup_by_hand() -> None:
    first, second = np.full((2, 3, 3), 200, np.uint8), np.full((3, 2, 3), 101, np.uint8)
    expected = [[125, 125, 50], [125, 125, 50], [75, 75, 0]]  # truncated: 125.75, 75.75
    assert mix(first, second, 0.25)[..., 1].tolist() == expected
    picture = noise(20, 20)
    for ratio in np.random.default_rng(0).uniform(size=100):
        np.testing.assert_array_equal(mix(picture, picture, float(ratio)), picture)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interpolations": ()}, "at least one"),
        ({"colour": 1.1}, "augment.colour: expected a probability, got 1.1"),
        ({"expand": -0.1}, "augment.expand"),
        ({"flip": float("nan")}, "augment.flip"),
        ({"shape_min": 16}, "got 16, 608, 32"),
        ({"shape_min": 640}, "got 640, 608, 32"),
        ({"shape_step": 0}, "shape_step"),
        ({"shape_interval": 0}, "shape_interval"),
        ({"mixup_off_epochs": -1}, "mixup_off_epochs"),
        ({"mixup_alpha": 0.0}, "mixup_alpha"),
        ({"mosaic": 1.5}, "augment.mosaic: expected a probability, got 1.5"),
        ({"mosaic_scale": (0.0, 1.0)}, r"mosaic_scale: .*, both positive, got \[0.0, 1.0\]"),
        ({"mosaic_scale": (1.0, 0.5)}, "mosaic_scale"),
        ({"mosaic_scale": (1.0, float("inf"))}, "mosaic_scale"),
        ({"mosaic_scale": (float("nan"), 1.0)}, "mosaic_scale"),
        ({"mosaic_off_epochs": -1}, "mosaic_off_epochs: expected at least 0, got -1"),
        ({"expand_ratio": 0.5}, "expand_ratio"),
    ],
)
def test_impossible_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AugmentConfig(**values)
