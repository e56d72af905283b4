"""Sizes by hand and against pycocotools."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.metrics.tables import Row, packed_detections, packed_truth
from triscale.metrics.matching import match
from triscale.metrics.sizes import SizeRow, by_size

SMALL, MEDIUM, LARGE = (0, 0, 20, 20), (100, 0, 150, 50), (200, 0, 400, 200)


def sizes(detections: list[Row], truth: list[Row], threshold: float = 0.5) -> list[SizeRow]:
    found, objects = packed_detections(detections), packed_truth(truth)
    return by_size(
        found,
        objects,
        match(found, objects),
        num_classes=3,
        inclusive=False,
        threshold=threshold,
    )


@pytest.mark.parametrize(
    ("detections", "truth", "objects", "ap", "recall"),
    [
        ([], [], [0, 0, 0], [math.nan] * 3, [math.nan] * 3),
        ([(0, *SMALL, 0, 0.9)], [], [0, 0, 0], [math.nan] * 3, [math.nan] * 3),
        (
            [(0, *SMALL, 0, 0.9), (0, *LARGE, 0, 0.4)],  # found, but below the threshold
            [(0, *SMALL, 0, 0), (0, *LARGE, 0, 0)],
            [1, 0, 1],
            [1, math.nan, 1],
            [1, math.nan, 0],
        ),
        # A false box counts among the sizes it has.
        (
            [(0, *SMALL, 0, 0.9), (0, *MEDIUM, 0, 0.8)],
            [(0, *MEDIUM, 0, 0), (1, *SMALL, 0, 0)],
            [1, 1, 0],
            [0, 1, math.nan],
            [0, 1, math.nan],
        ),
        # A correct one among those of its object: 28 x 36 is small, 34 x 34 isn't.
        ([(0, 0, 0, 34, 34, 0, 0.9)], [(0, 0, 0, 28, 36, 0, 0)], [1, 0, 0], [1, math.nan, math.nan],
         [1, math.nan, math.nan]),
        ([(0, *SMALL, 0, 0.9)], [(0, *SMALL, 0, 1)], [0, 0, 0], [math.nan] * 3, [math.nan] * 3),
        # The mean over the classes that have objects of the size.
        (
            [(0, *SMALL, 0, 0.9)],
            [(0, *SMALL, 0, 0), (1, *SMALL, 2, 0), (1, *LARGE, 1, 0)],
            [2, 0, 1],
            [0.5, math.nan, 0],
            [0.5, math.nan, 0],
        ),
    ],
)  # fmt: skip
def test_small_cases(
    detections: list[Row],
    truth: list[Row],
    objects: list[int],
    ap: list[float],
    recall: list[float],
) -> None:
    rows = sizes(detections, truth)
    assert [row.name for row in rows[:3]] == ["small", "medium", "large"]
    assert [row.objects for row in rows[:3]] == objects
    np.testing.assert_allclose([row.ap for row in rows[:3]], ap)
    np.testing.assert_allclose([row.recall for row in rows[:3]], recall)
    assert sum(row.objects for row in rows[3:]) == sum(objects)


def test_thirds_hold_as_many_objects() -> None:
    truth: list[Row] = [(i, 0, 0, 10 + i, 10, 0, 0) for i in range(30)]
    rows = sizes([], truth)[3:]
    assert [row.objects for row in rows] == [10, 10, 10]
    assert [row.name for row in rows] == ["smallest third", "middle third", "largest third"]
    assert rows[0].high == rows[1].low == pytest.approx(100 + 10 * 29 / 3)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Objects that lie apart, found once or twice or not; the AP is of 101 points there."""
    rng = np.random.default_rng(seed)
    truth: list[Row] = []
    found: list[Row] = []
    for image in range(60):
        for cell in range(4):
            x, y = 500 * (cell % 2), 500 * (cell // 2)
            side = np.exp(rng.uniform(np.log(12), np.log(300), 2))
            box = np.array([x, y, x + side[0], y + side[1]])
            label = rng.integers(0, 3)
            truth.append((image, *box, label, 0))
            for _ in range(rng.integers(0, 4)):
                near = box + rng.normal(0, 0.08, 4) * np.tile(side, 2)
                found.append((image, *near, label, rng.random()))
    rows = sizes(found, truth, threshold=0.0)[:3]

    def annotation(i: int, row: Row) -> dict[str, object]:
        image, x1, y1, x2, y2, label, last = (float(v) for v in row)
        area = (x2 - x1) * (y2 - y1)
        ids = {"id": i + 1, "image_id": int(image), "category_id": int(label)}
        return ids | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0, "score": last}

    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(60)],
        "categories": [{"id": c} for c in range(3)],
        "annotations": [annotation(i, row) for i, row in enumerate(truth)],
    }
    coco.createIndex()
    results = coco.loadRes([annotation(i, row) for i, row in enumerate(found)])
    evaluation = COCOeval(coco, results, "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.evaluate()
    evaluation.accumulate()
    capfd.readouterr()
    totals = np.zeros((3, 3))
    for _, x1, y1, x2, y2, label, _ in truth:
        totals[np.searchsorted([32**2, 96**2], (x2 - x1) * (y2 - y1)), int(label)] += 1
    for k, row in enumerate(rows):
        assert row.objects == totals[k].sum()
        assert row.ap == pytest.approx(
            evaluation.eval["precision"][0, :, :, k + 1, 2].mean(), abs=0.02
        )
        recall = evaluation.eval["recall"][0, :, k + 1, 2]
        assert row.recall == pytest.approx((recall * totals[k]).sum() / totals[k].sum())
        assert 0.2 < row.ap < 0.95
