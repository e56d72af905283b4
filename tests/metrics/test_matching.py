"""The matches against a loop over all pairs, and their memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.metrics.tables import (
    CROWD,
    DIFFICULT,
    A,
    Row,
    by_hand,
    packed_detections,
    packed_truth,
    random_tables,
)
from triscale.metrics import matching
from triscale.metrics.matching import match
from triscale.metrics.voc import PackedDetections, PackedTruth


@pytest.mark.parametrize(
    ("detections", "truth", "states"),
    [
        ([], [], ""),
        ([], [(0, *A, 0, 0)], ""),
        ([(0, *A, 0, 0.9)], [], "f"),
        ([(0, *A, 0, 0.8), (0, *A, 0, 0.9)], [(0, *A, 0, 0)], "fc"),
        ([(0, *A, 0, 0.9), (0, *A, 1, 0.9), (1, *A, 0, 0.9)], [(0, *A, 0, 0)], "cff"),
        # A difficult object may be found again and again.
        ([(0, *A, 0, 0.9), (0, *A, 0, 0.8)], [(0, *A, 0, DIFFICULT)], "ii"),
        # So may a crowd, by boxes that lie at least half in it, if they are of its class.
        (
            [(0, 0, 0, 2, 2, 0, 0.9), (0, 8, 0, 12, 2, 0, 0.8), (0, 9, 0, 13, 2, 0, 0.7)],
            [(0, *A, 0, CROWD)],
            "iif",
        ),
        ([(0, 0, 0, 2, 2, 1, 0.9)], [(0, *A, 0, CROWD)], "f"),
        # Who finds an object in a crowd is correct; the second is ignored.
        ([(0, *A, 0, 0.9), (0, *A, 0, 0.8)], [(0, *A, 0, 0), (0, *A, 0, CROWD)], "ci"),
    ],
)
def test_small_cases(detections: list[Row], truth: list[Row], states: str) -> None:
    matches = match(packed_detections(detections), packed_truth(truth))
    names = np.select([matches.correct, matches.ignored, matches.false], ["c", "i", "f"], "?")
    assert "".join(names) == states
    assert len(matches.finder) == len(matches.missing()) == len(truth)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("plus", [0, 1])
@pytest.mark.parametrize("at_a_time", [1, 50, 1 << 19])
def test_random_data_equal_the_loop(
    seed: int, plus: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_PAIRS_AT_A_TIME", at_a_time)
    detections, truth = random_tables(seed)
    matches = match(detections, truth, inclusive=plus > 0)
    expected = by_hand(detections, truth, plus)
    for field in ("own", "other"):
        objects, overlaps = zip(*getattr(expected, field), strict=True)
        assert getattr(matches, field).tolist() == list(objects)
        np.testing.assert_allclose(getattr(matches, f"{field}_iou"), overlaps, rtol=0, atol=1e-12)
    for state in ("correct", "ignored", "false"):
        assert getattr(matches, state).tolist() == [s == state for s in expected.state]
        assert expected.state.count(state) > 10  # the data are not trivial
    objects = range(len(truth.labels))
    assert matches.finder.tolist() == [expected.finder.get(j, -1) for j in objects]
    assert matches.order.tolist() == expected.order
    counted = ~truth.difficult & ~truth.crowd
    assert matches.counted.tolist() == counted.tolist()
    shown = detections.scores >= 0.5
    for least, missing in ((0.5, matches.missing(shown)), (0, matches.missing())):
        found = {j for j, i in expected.finder.items() if detections.scores[i] >= least}
        assert set(np.flatnonzero(missing)) == set(np.flatnonzero(counted)) - found


def test_memory_is_bounded() -> None:
    """Ten million pairs, whose boxes alone are 640 MB."""
    pictures, objects, found = 100, 400, 250
    rng = np.random.default_rng(0)

    def boxes(count: int) -> np.ndarray:
        corner = rng.uniform(0, 900, (pictures * count, 2))
        return np.concatenate([corner, corner + 50], 1)

    none = np.zeros(pictures * objects, np.bool_)
    images = np.arange(pictures)
    truth = PackedTruth(
        np.repeat(images, objects), boxes(objects), none.astype(int), none, none, none.astype(float)
    )
    detections = PackedDetections(
        np.repeat(images, found),
        boxes(found),
        rng.random(pictures * found),
        np.zeros(pictures * found, int),
    )
    tracemalloc.start()
    matches = match(detections, truth)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert matches.correct.sum() > 1000
    assert most < 250e6
