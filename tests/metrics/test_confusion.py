"""The confusion matrix by hand and by a loop."""

from __future__ import annotations

import numpy as np
import pytest

from tests.metrics.tables import (
    CROWD,
    DIFFICULT,
    A,
    B,
    Row,
    by_hand,
    packed_detections,
    packed_truth,
    random_tables,
)
from triscale.metrics.confusion import confusion_matrix
from triscale.metrics.matching import match

NOTHING = 2  # the background, of two classes


@pytest.mark.parametrize(
    ("detections", "truth", "cells"),
    [
        ([], [], []),
        ([], [(0, *A, 0, 0), (0, *B, 1, 0)], [(0, NOTHING), (1, NOTHING)]),
        ([(0, *A, 1, 0.9)], [], [(NOTHING, 1)]),
        ([(0, *A, 1, 0.4)], [], []),  # its score is too low
        ([(0, *A, 1, 0.5)], [(0, *A, 1, 0)], [(1, 1)]),
        ([(0, *A, 1, 0.9)], [(0, *A, 0, 0)], [(0, 1)]),
        ([(0, *A, 0, 0.9), (0, *A, 0, 0.8)], [(0, *A, 0, 0)], [(0, 0), (NOTHING, 0)]),
        # The better score takes the object, of whatever class.
        ([(0, *A, 0, 0.8), (0, *A, 1, 0.9)], [(0, *A, 0, 0)], [(0, 1), (NOTHING, 0)]),
        # Two objects in one place: each is taken by its own class, though the other is nearer.
        (
            [(0, *A, 0, 0.9), (0, *A, 1, 0.8)],
            [(0, *A, 1, 0), (0, 0, 0, 10, 8, 0, 0)],
            [(0, 0), (1, 1)],
        ),
        # Too far away of both.
        ([(0, 0, 0, 10, 4, 0, 0.9)], [(0, *A, 1, 0)], [(NOTHING, 0), (1, NOTHING)]),
        # What is on difficult objects and in crowds, and these themselves, aren't counted.
        ([(0, *A, 0, 0.9), (0, *A, 1, 0.8)], [(0, *A, 0, DIFFICULT)], []),
        ([(0, 0, 0, 3, 3, 0, 0.9), (0, 0, 0, 3, 3, 1, 0.9)], [(0, *A, 0, CROWD)], [(NOTHING, 1)]),
    ],
)
def test_small_cases(detections: list[Row], truth: list[Row], cells: list[tuple[int, int]]) -> None:
    found, objects = packed_detections(detections), packed_truth(truth)
    matrix = confusion_matrix(found, objects, match(found, objects), num_classes=2, threshold=0.5)
    expected = np.zeros((3, 3), int)
    for cell in cells:
        expected[cell] += 1
    assert matrix.tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_random_data_equal_the_loop(seed: int) -> None:
    detections, truth = random_tables(seed)
    book = by_hand(detections, truth)
    expected = np.zeros((4, 4), int)
    counts = ~(truth.difficult | truth.crowd)
    taken: set[int] = set()
    for i in book.order:
        if detections.scores[i] < 0.3:
            continue
        near = [j for j, overlap in (book.own[i], book.other[i]) if overlap >= 0.5]
        near = [j for j in near if j not in taken]
        if not near and book.state[i] != "ignored":
            expected[3, detections.labels[i]] += 1
        elif near and counts[near[0]]:
            taken.add(near[0])
            expected[truth.labels[near[0]], detections.labels[i]] += 1
    for j in np.flatnonzero(counts):
        if j not in taken:
            expected[truth.labels[j], 3] += 1
    matches = match(detections, truth)
    matrix = confusion_matrix(detections, truth, matches, num_classes=3, threshold=0.3)
    assert matrix.tolist() == expected.tolist()
    assert matrix[:3].sum(1).tolist() == np.bincount(truth.labels[counts], minlength=3).tolist()
    assert (matrix.diagonal()[:3] > 3).all()
    assert matrix[:3, :3].sum() > matrix.trace()
