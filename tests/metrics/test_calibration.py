"""The reliability diagram by hand and by a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.metrics.tables import A, B, Row, by_hand, packed_detections, packed_truth, random_tables
from triscale.metrics.calibration import calibration
from triscale.metrics.matching import match


@pytest.mark.parametrize(
    ("detections", "count", "ece"),
    [
        ([], [0, 0], math.nan),
        ([(0, *A, 0, 1.0)], [0, 1], 0.0),
        ([(0, *B, 0, 1.0)], [0, 1], 1.0),
        ([(0, *A, 0, 0.5), (0, *B, 0, 0.5)], [0, 2], 0.0),  # half of those at a half
        ([(0, *A, 0, 0.8), (0, *B, 0, 0.1), (0, *B, 0, 0.3)], [2, 1], (2 * 0.2 + 0.2) / 3),
        ([(0, *A, 0, 0.8), (1, *A, 0, 0.9)], [0, 1], 0.2),  # on a difficult one: ignored
    ],
)
def test_small_cases(detections: list[Row], count: list[int], ece: float) -> None:
    found = packed_detections(detections)
    result = calibration(found, match(found, packed_truth([(0, *A, 0, 0), (1, *A, 0, 1)])), bins=2)
    assert result.count.tolist() == count
    assert result.ece == pytest.approx(ece, nan_ok=True)
    assert np.isnan(result.score).tolist() == [n == 0 for n in count]


@pytest.mark.parametrize("least", [0.0, 0.35])
def test_random_data_equal_the_loop(least: float) -> None:
    detections, truth = random_tables(0, pictures=60)
    result = calibration(detections, match(detections, truth), least=least)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(10)]
    for score, state in zip(detections.scores, by_hand(detections, truth).state, strict=True):
        if state != "ignored" and score >= least:
            bins[min(int(score * 10), 9)].append((score, state == "correct"))
    error = 0.0
    for b, rows in enumerate(bins):
        assert result.count[b] == len(rows)
        if rows:
            score, precision = np.mean(rows, 0)
            error += len(rows) * abs(score - precision)
            assert result.score[b] == pytest.approx(score)
            assert result.precision[b] == pytest.approx(precision)
    assert result.ece == pytest.approx(error / result.count.sum())
    assert (result.count[4:] > 5).all()
