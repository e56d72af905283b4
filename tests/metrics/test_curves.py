"""Curves against voc_ap, which integrates them, and a loop over thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.metrics.tables import A, B, Row, by_hand, packed_detections, packed_truth, random_tables
from triscale.metrics.curves import at_threshold, f1_by_score, precision_recall
from triscale.metrics.matching import match
from triscale.metrics.voc import voc_ap


@pytest.mark.parametrize(
    ("detections", "truth", "threshold", "best"),
    [
        ([], [], 0.5, math.nan),
        ([(0, *A, 0, 0.9)], [], 0.5, math.nan),
        ([], [(0, *A, 0, 0)], 0.5, 0.0),
        ([(0, *B, 0, 0.9)], [(0, *A, 0, 0)], 0.5, 0.0),
        ([(0, *A, 0, 0.9), (0, *B, 0, 0.8)], [(0, *A, 0, 0)], 0.9, 1.0),
        ([(0, *A, 0, 0.2), (0, *B, 0, 0.8)], [(0, *A, 0, 0)], 0.2, 2 / 3),
        # Equal scores are shown together, whatever their order.
        ([(0, *A, 0, 0.4), (0, *B, 0, 0.4)], [(0, *A, 0, 0)], 0.4, 2 / 3),
        # All classes together, and the higher of two thresholds that are as good.
        (
            [(0, *A, 0, 0.9), (1, *A, 0, 0.8), (1, *B, 1, 0.7)],
            [(0, *A, 0, 0), (1, *B, 1, 0)],
            0.7,
            4 / 5,
        ),
        ([(0, *A, 0, 0.9), (0, *A, 0, 0.8), (0, *B, 0, 0.8)], [(0, *A, 0, 0)] * 2, 0.9, 2 / 3),
    ],
)
def test_small_cases(
    detections: list[Row], truth: list[Row], threshold: float, best: float
) -> None:
    found, objects = packed_detections(detections), packed_truth(truth)
    matches = match(found, objects)
    f1 = f1_by_score(found, matches)
    assert f1.threshold == threshold
    assert f1.best == pytest.approx(best, nan_ok=True)
    if best > 0:
        assert at_threshold(found, matches, threshold=threshold).f1 == pytest.approx(best)
    assert len(precision_recall(found, objects, matches, num_classes=2)) == 2


def test_curve_by_hand() -> None:
    found = packed_detections([(0, *A, 0, 0.9), (0, *B, 0, 0.8), (1, *A, 0, 0.7), (1, *B, 1, 0.6)])
    truth = packed_truth([(0, *A, 0, 0), (1, *A, 0, 0)])
    curve, empty = precision_recall(found, truth, match(found, truth), num_classes=2)
    assert [c.tolist() for c in curve] == [[0.5, 1], [1, 2 / 3], [0.9, 0.7]]
    assert [len(c) for c in empty] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_random_data(seed: int) -> None:
    detections, truth = random_tables(seed, pictures=40)
    matches, expected = match(detections, truth), by_hand(detections, truth)
    f1 = f1_by_score(detections, matches)
    total = matches.counted.sum()
    slow: dict[float, float] = {}
    for t in sorted(set(detections.scores.tolist()), reverse=True):
        states = [s for s, x in zip(expected.state, detections.scores, strict=True) if x >= t]
        true, false = states.count("correct"), states.count("false")
        slow[t] = 2 * true / (true + false + total)
        point = at_threshold(detections, matches, threshold=t)
        if true:
            np.testing.assert_allclose(
                point, (true / (true + false), true / total, slow[t]), rtol=1e-12
            )
    assert f1.best == pytest.approx(max(slow.values()))
    assert slow[f1.threshold] == f1.best
    for t, value in zip(f1.scores.tolist(), f1.f1.tolist(), strict=True):
        assert value == pytest.approx(slow[t])
    assert 0.1 < f1.best < 0.9


def test_areas_are_those_of_the_metric() -> None:
    detections, truth = random_tables(5, pictures=60, crowds=False)
    curves = precision_recall(detections, truth, match(detections, truth), num_classes=3)
    expected = voc_ap(detections, truth, num_classes=3, use_07=False).per_class
    for curve, ap in zip(curves, expected, strict=True):
        assert 10 < len(curve.recall) < 199
        steps = np.diff(curve.recall, prepend=0)
        assert (steps * curve.precision).sum() == pytest.approx(ap)
        assert (np.diff(curve.scores) <= 0).all()


def test_long_curves_are_thinned() -> None:
    detections, truth = random_tables(6, pictures=1500, crowds=False)
    matches = match(detections, truth)
    curves = precision_recall(detections, truth, matches, num_classes=3)
    expected = voc_ap(detections, truth, num_classes=3, use_07=False)
    assert max(len(c.recall) for c in curves) > 150
    for curve, ap in zip(curves, expected.per_class, strict=True):
        assert len(curve.recall) <= 200
        area = (np.diff(curve.recall, prepend=0) * curve.precision).sum()
        assert area == pytest.approx(ap, abs=0.005)  # the precision falls between the points
    f1 = f1_by_score(detections, matches)
    assert 150 < len(f1.scores) <= 200
    assert f1.best == f1.f1.max() == f1.f1[f1.scores == f1.threshold]
