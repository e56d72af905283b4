"""Counts per picture, mistakes and missed objects against a loop."""

from __future__ import annotations

import numpy as np
import pytest

from tests.metrics.tables import by_hand, packed_detections, packed_truth, random_tables
from triscale.metrics.matching import match
from triscale.metrics.pictures import by_picture, confident_mistakes, missed_objects

A, B = (0, 0, 10, 10), (20, 20, 35, 35)


def test_nothing() -> None:
    nothing = packed_detections([]), packed_truth([])
    matches = match(*nothing)
    assert [len(field) for field in by_picture(*nothing, matches, threshold=0.5)] == [0] * 5
    assert len(confident_mistakes(nothing[0], matches, threshold=0.5)) == 0
    assert len(missed_objects(*nothing, matches, threshold=0.5)) == 0


def test_by_hand() -> None:
    found = packed_detections(
        [(3, *A, 0, 0.9), (3, *B, 0, 0.6), (3, *B, 1, 0.8), (7, *A, 0, 0.4), (8, *A, 0, 0.9)]
    )
    truth = packed_truth(
        [(3, *A, 0, 0), (7, *A, 0, 0), (7, *B, 0, 0), (8, *A, 0, 1), (9, *A, 0, 0)]
    )
    matches = match(found, truth)
    pictures = by_picture(found, truth, matches, threshold=0.5)
    table = {i: row for i, *row in zip(*(f.tolist() for f in pictures[:4]), strict=True)}
    assert table == {3: [1, 2, 0], 7: [0, 0, 2], 8: [0, 0, 0], 9: [0, 0, 1]}
    np.testing.assert_array_equal(pictures.f1, [0.5, 0, np.nan, 0])
    assert confident_mistakes(found, matches, threshold=0.5).tolist() == [2, 1]
    assert missed_objects(found, truth, matches, threshold=0.5).tolist() == [2, 1, 4]
    assert missed_objects(found, truth, matches, threshold=0.4).tolist() == [2, 4]


@pytest.mark.parametrize("seed", range(3))
def test_random_data_equal_the_loop(seed: int) -> None:
    detections, truth = random_tables(seed)
    book, matches = by_hand(detections, truth), match(detections, truth)
    pictures = by_picture(detections, truth, matches, threshold=0.5)
    expected = {int(i): [0, 0, 0] for i in [*truth.images, *detections.images]}
    for i, state in enumerate(book.state):
        if detections.scores[i] >= 0.5 and state != "ignored":
            expected[detections.images[i]][state == "false"] += 1
    for j in range(len(truth.labels)):
        found = j in book.finder and detections.scores[book.finder[j]] >= 0.5
        expected[truth.images[j]][2] += not (found or truth.difficult[j] or truth.crowd[j])
    assert pictures.images.tolist() == sorted(expected)
    for i, *row in zip(*(f.tolist() for f in pictures[:4]), strict=True):
        assert row == expected[i]
    wrong = confident_mistakes(detections, matches, threshold=0.5)
    assert len(wrong) == pictures.fp.sum() > 10
    assert {book.state[i] for i in wrong} == {"false"}
    assert (np.diff(detections.scores[wrong]) <= 0).all()
    missed = missed_objects(detections, truth, matches, threshold=0.5)
    assert len(missed) == pictures.fn.sum() > 10
    assert (np.diff(truth.areas[missed]) <= 0).all()
