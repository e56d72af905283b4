"""The analysis as a whole: that its parts agree with each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.metrics.tables import Row, packed_detections, packed_truth, random_tables
from triscale.metrics.analysis import analyse
from triscale.metrics.voc import voc_ap

A = (0, 0, 10, 10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("detections", [[], [(0, *A, 0, 0.9)], [(1, *A, 1, 0.9)]])
@pytest.mark.parametrize("truth", [[], [(0, *A, 0, 0)], [(0, *A, 0, 1)], [(0, *A, 0, 2)]])
def test_hardly_anything(detections: list[Row], truth: list[Row]) -> None:
    analysis = analyse(
        packed_detections(detections), packed_truth(truth), num_classes=2, inclusive=False
    )
    found = detections == [(0, *A, 0, 0.9)] and truth == [(0, *A, 0, 0)]
    assert analysis.threshold == (0.9 if found else 0.5)
    assert analysis.confusion.trace() == found
    assert len(analysis.curves) == 2
    assert len(analysis.sizes) == 6
    assert math.isnan(analysis.errors.ap) == (truth != [(0, *A, 0, 0)])
    assert analysis.shown_counts.sum() == len(analysis.missed) + len(analysis.mistakes)


@pytest.mark.parametrize("threshold", [None, 0.4])
@pytest.mark.parametrize("inclusive", [True, False])
def test_the_parts_agree(threshold: float | None, inclusive: bool) -> None:
    detections, truth = random_tables(1, pictures=80, crowds=False)
    analysis = analyse(detections, truth, num_classes=3, inclusive=inclusive, threshold=threshold)
    assert analysis.threshold == (threshold or analysis.f1.threshold)
    tp, fp, fn = (int(field.sum()) for field in analysis.images[1:4])
    assert analysis.at_threshold == pytest.approx(
        (tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn))
    )
    if threshold is None:
        assert analysis.at_threshold.f1 == pytest.approx(analysis.f1.best)
    assert (len(analysis.mistakes), len(analysis.missed)) == (fp, fn)
    assert analysis.shown_counts[:5].sum() == fp
    assert (analysis.errors.kind_of[analysis.mistakes] >= 0).all()
    objects = np.bincount(truth.labels[~truth.difficult])
    assert analysis.confusion[:3].sum(1).tolist() == objects.tolist()
    expected = voc_ap(detections, truth, num_classes=3, use_07=False, inclusive=inclusive)
    assert analysis.errors.ap == pytest.approx(expected.mean)
    for rows in (analysis.sizes[:3], analysis.sizes[3:]):
        assert sum(row.objects for row in rows) == objects.sum()
        assert sum(row.recall * row.objects for row in rows if row.objects) == pytest.approx(tp)
    kept = np.count_nonzero(detections.scores >= analysis.threshold)
    assert tp + fp <= kept < analysis.calibration.count.sum()
    assert 0 < analysis.shown_ece < 1
