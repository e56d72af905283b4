"""Bytes to network input, against plain numpy and against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from triscale.normalise import network_input
from triscale.pixels import FILL, MEAN, STD, Fit, InputConfig, placement
from triscale.types import Batch


def make_batch(images: ArrayLike, colour: ArrayLike, rectangle: ArrayLike) -> Batch:
    """A batch of `images` (B, H, W, 3) without objects."""
    pictures = torch.as_tensor(np.asarray(images, np.uint8))
    size = len(pictures)
    return Batch(
        images=pictures,
        boxes=torch.zeros(size, 0, 4),
        labels=torch.zeros(size, 0, dtype=torch.int64),
        weights=torch.zeros(size, 0),
        image_ids=torch.arange(size),
        original_sizes=torch.ones(size, 2, dtype=torch.int64),
        colour=torch.as_tensor(np.asarray(colour, np.float32).reshape(size, 3, 4)),
        rectangle=torch.as_tensor(np.asarray(rectangle, np.float32).reshape(size, 4)),
    )


def random_batch(size: int, height: int, width: int) -> Batch:
    """Random pixels and colours; rectangles that are empty, random, or end on a pixel's centre."""
    rng = np.random.default_rng(size)
    corners = np.sort(rng.uniform(0, (height, width), (size, 2, 2)), axis=1)  # (B, 2, y x)
    rectangle = corners[:, :, ::-1].reshape(size, 4)
    rectangle[::3] = 0
    rectangle[1::3] = np.floor(rectangle[1::3]) + 0.5
    colour = rng.normal(size=(size, 3, 4)) + np.eye(3, 4)
    return make_batch(rng.integers(0, 256, (size, height, width, 3)), colour, rectangle)


def one_by_one(
    batch: Batch, mean: ArrayLike = MEAN, std: ArrayLike = STD, fill: ArrayLike = MEAN
) -> NDArray[np.float64]:
    """The same (B, 3, H, W) in doubles: colour, then normalisation, pixel by pixel."""
    images, colours = batch.images.numpy(), batch.colour.double().numpy()
    output = np.empty(images.shape)
    output[:] = (np.asarray(fill) - mean) / std
    for b, (x1, y1, x2, y2) in enumerate(batch.rectangle.tolist()):
        for y, x in np.ndindex(images.shape[1:3]):
            if x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2:
                pixel = colours[b, :, :3] @ images[b, y, x] + colours[b, :, 3]
                output[b, y, x] = (pixel / 255 - mean) / std
    return output.transpose(0, 3, 1, 2)


@pytest.mark.parametrize(("size", "height", "width"), [(0, 4, 6), (1, 1, 1), (9, 7, 11)])
def test_network_input(size: int, height: int, width: int) -> None:
    batch = random_batch(size, height, width)
    expected = one_by_one(batch)
    output = network_input(batch, InputConfig())
    assert output.dtype == torch.float32
    assert output.shape == (size, 3, height, width)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=2e-5)
    assert not output.numpy()[expected == 0].any()  # exactly 0 outside the rectangles


@pytest.mark.parametrize(
    ("config", "mean", "std", "fill"),
    [
        (InputConfig("unit", "stretch"), np.zeros(3), np.ones(3), MEAN),
        (InputConfig("unit", "letterbox"), np.zeros(3), np.ones(3), np.full(3, 0.5)),
        (InputConfig("imagenet", "letterbox"), MEAN, STD, np.full(3, 0.5)),
    ],
)
def test_each_input_has_its_normalisation_and_fill(
    config: InputConfig, mean: ArrayLike, std: ArrayLike, fill: ArrayLike
) -> None:
    batch = random_batch(9, 7, 11)
    expected = one_by_one(batch, mean, std, fill)
    np.testing.assert_allclose(network_input(batch, config), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("picture", "size", "fit", "expected"),
    [
        ((1, 1), (32, 64), "stretch", (0, 0, 64, 32)),
        ((576, 768), (416, 416), "stretch", (0, 0, 416, 416)),
        ((576, 768), (416, 416), "letterbox", (0, 52, 416, 312)),
        ((424, 640), (416, 416), "letterbox", (0, 70, 416, 275)),  # 275.6 is rounded down
        ((640, 424), (416, 416), "letterbox", (70, 0, 275, 416)),
        ((480, 480), (416, 416), "letterbox", (0, 0, 416, 416)),
        ((10, 10), (32, 64), "letterbox", (16, 0, 32, 32)),
        ((1, 5000), (416, 416), "letterbox", (0, 207, 416, 1)),  # Darknet would draw nothing
    ],
)
def test_placement(
    picture: tuple[int, int], size: tuple[int, int], fit: Fit, expected: tuple[int, ...]
) -> None:
    assert placement(picture, size, fit) == expected


@pytest.mark.golden
def test_normalisation_equals_the_reference(golden: Path) -> None:
    arrays = np.load(golden / "preset_transforms.npz")
    width, height = arrays["val3_wh"].tolist()
    expected = arrays["val3_img"]
    levels = np.rint(255 * (expected.transpose(1, 2, 0) * STD + MEAN))
    batch = make_batch(levels[None], np.eye(3, 4), (0, 0, width, height))
    np.testing.assert_allclose(network_input(batch, InputConfig())[0], expected, rtol=0, atol=1e-6)


def test_fill_is_the_mean() -> None:
    batch = make_batch(np.broadcast_to(FILL, (1, 2, 2, 3)), np.eye(3, 4), (0, 0, 2, 2))
    largest = network_input(batch, InputConfig()).abs().max()
    assert largest < 0.5 / 255 / min(STD)  # rounded to whole levels


def test_memory_is_channels_last() -> None:
    output = network_input(random_batch(2, 8, 6), InputConfig())
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_the_batch_is_not_changed() -> None:
    batch = random_batch(2, 8, 6)
    before = [field.clone() for field in batch]
    network_input(batch, InputConfig())
    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))


def test_autocast_does_not_cost_precision() -> None:
    batch = random_batch(3, 8, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output = network_input(batch, InputConfig())
    assert torch.equal(output, network_input(batch, InputConfig()))
