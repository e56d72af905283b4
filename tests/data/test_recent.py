"""The pictures decoded last: what is kept, and for how long."""

from __future__ import annotations

import pytest

from tests.data.tiny import noise
from triscale.data.recent import RecentPictures


def test_nothing_is_there_at_first() -> None:
    assert RecentPictures().get(0, reduction=1) is None


def test_each_reduction_is_a_picture_of_its_own() -> None:
    recent, whole, half = RecentPictures(), noise(8, 6), noise(4, 3)
    recent.put(5, whole, reduction=1)
    recent.put(5, half, reduction=2)
    assert recent.get(5, reduction=1) is whole
    assert recent.get(5, reduction=2) is half
    assert recent.get(5, reduction=4) is None
    assert recent.get(4, reduction=1) is None


@pytest.mark.parametrize(
    ("sides", "asked", "left"),
    [
        ([], None, []),
        ([10, 10], None, [0, 1]),  # 300 bytes each
        ([10, 10, 10], None, [0, 1, 2]),
        ([10, 10, 10, 10], None, [1, 2, 3]),
        ([10, 10, 10, 10], 0, [0, 2, 3]),  # the first one was asked for before the last came
        ([10, 10, 10, 17], None, [3]),
        ([10, 18], None, []),  # larger than the limit: nothing stays
    ],
)
def test_the_latest_stay_within_the_limit(
    sides: list[int], asked: int | None, left: list[int]
) -> None:
    recent = RecentPictures(limit=900)
    for image, side in enumerate(sides):
        if asked is not None and image == len(sides) - 1:
            recent.get(asked, reduction=1)
        recent.put(image, noise(side, side), reduction=1)
    assert [i for i in range(len(sides)) if recent.get(i, reduction=1) is not None] == left
