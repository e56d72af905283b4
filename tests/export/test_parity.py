"""The comparison itself: expected values by hand."""

from __future__ import annotations

import pytest

from tests.finding import found
from triscale.export.parity import Tolerance, compare

Row = tuple[float, float, float, float, float, int]  # x1, y1, x2, y2, score, label
A: Row = (0, 0, 10, 10, 0.9, 0)
B: Row = (50, 50, 60, 60, 0.8, 1)


@pytest.mark.parametrize(
    ("one", "two", "unmatched", "score", "box"),
    [
        ([], [], 0, 0, 0),
        ([A, B], [A, B], 0, 0, 0),
        ([A, B], [B, A], 0, 0, 0),  # the order doesn't matter
        ([A], [(0, 0, 10, 10.25, 0.85, 0)], 0, 0.05, 0.5),  # at two pixels for one
        ([A, B], [A], 1, 0, 0),
        ([A], [A, B], 1, 0, 0),
        ([A], [(0, 0, 10, 10, 0.9, 1)], 2, 0, 0),  # another class
        ([A], [(5, 0, 15, 10, 0.9, 0)], 2, 0, 0),  # another place
        ([A], [A, (50, 50, 60, 60, 0.1005, 1)], 0, 0, 0),  # a rounding above the threshold
        ([A, A], [A, B], 2, 0, 0),
        ([(0, 5, 0, 9, 0.9, 0)] * 2, [(0, 5, 0, 9, 0.9, 0)] * 2, 0, 0, 0),  # boxes without area
    ],
)
def test_compare(one: list[Row], two: list[Row], unmatched: int, score: float, box: float) -> None:
    tolerance = Tolerance(1e-3, 0.1)
    parity = compare(
        [found(*one)], [found(*two)], scales=[2.0], threshold=0.1, most=9, tolerance=tolerance
    )
    assert parity.unmatched == unmatched
    assert parity.score == pytest.approx(score, abs=1e-6)
    assert parity.box == pytest.approx(box, abs=1e-5)


def test_the_last_of_a_full_list() -> None:
    """Which of two equal scores is the last that fits is decided by a rounding."""
    one, two = found(A, (50, 50, 60, 60, 0.8, 1)), found(A, (80, 50, 90, 60, 0.8, 1))
    for most, unmatched in ((2, 0), (3, 2)):
        parity = compare(
            [one], [two], scales=[1.0], threshold=0.1, most=most, tolerance=Tolerance(1e-3, 0.1)
        )
        assert parity.unmatched == unmatched
