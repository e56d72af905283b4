"""The resize as arithmetic beside OpenCV's, which `val_transform` calls; where pictures lie."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from triscale.export.pictures import with_bars
from triscale.export.resize import fitted, placement_of
from triscale.pixels import Fit, placement
from triscale.predict import prepare

TARGET = (96, 128)
# (height, width): smaller, larger, the same, larger on one side only, thin, odd
SIZES = [(20, 30), (300, 500), TARGET, (96, 300), (60, 300), (300, 60), (33, 51), (2, 2), (97, 129)]


def picture(size: tuple[int, int]) -> np.ndarray:
    """Soft colours with hard edges."""
    generator = np.random.default_rng(sum(size))
    soft = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = cv2.resize(soft, size[::-1], interpolation=cv2.INTER_CUBIC)
    image[size[0] // 3 : size[0] // 2, size[1] // 4 : size[1] // 2] = (250, 3, 90)
    return image


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", SIZES)
def test_as_opencv(size: tuple[int, int], fit: Fit) -> None:
    image = picture(size)
    expected, sizes = prepare([image], TARGET, fit=fit)
    found = fitted(torch.from_numpy(image)[None], TARGET, fit=fit).numpy()
    inside = with_bars(np.ones_like(expected), sizes, fit=fit) == 1  # bars are the graph's matter
    difference = np.abs(found - expected)[inside]
    assert difference.max() <= 1  # OpenCV's weights have 11 bits
    assert (difference > 0).mean() < 0.3


@pytest.mark.parametrize("target", [(416, 416), (320, 416), (96, 64)])
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_placement(target: tuple[int, int], fit: Fit) -> None:
    sizes = torch.randint(1, 5000, (5000, 2), generator=torch.Generator().manual_seed(0))
    found = placement_of(sizes, target, fit=fit).int().tolist()
    assert found == [list(placement((h, w), target, fit)) for h, w in sizes.tolist()]
