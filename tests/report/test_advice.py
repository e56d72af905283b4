"""Advice: a finding planted in a run is the one that is named.

Which sentence a finding must lead to is the author's judgement; the numbers in it are counted by
hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.making import (
    FAR,
    Box,
    detections,
    eval_record,
    make_found,
    make_index,
    make_run,
    train_record,
)
from triscale.detections import Detections
from triscale.report.advice import MOST, advise
from triscale.report.found import examine
from triscale.report.story import read_story

EPOCHS = range(10)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], ["too little in this run folder"]),
        ([eval_record(0, None)], ["too little in this run folder"]),
        (
            [*map(train_record, EPOCHS), eval_record(9, 0.001)],
            ["next to nothing yet (mAP 0.001); only 100 steps"],
        ),
        (
            [train_record(9, step=5000), eval_record(9, 0.001)],
            ["next to nothing yet (mAP 0.001); see with `triscale check`"],
        ),
        (
            [train_record(9), {"kind": "skipped", "step": 7}, {"kind": "skipped", "step": 8}],
            ["2 of 100 steps were skipped"],
        ),
        (
            [
                r
                for e in EPOCHS
                for r in (train_record(e, loss=99.0 - 2 * e), eval_record(e, e / 10))
            ],
            ["The training loss still falls (by 2% over the last 2", "more epochs (--epochs 20)"],
        ),
        (
            [
                r
                for e in EPOCHS
                for r in (train_record(e, loss=90 - 9 * e), eval_record(e, 0.5 - abs(e - 4) / 20))
            ],
            ["mAP was best after epoch 4 and has lost 0.250 since"],
        ),
        (
            [train_record(e, data_seconds=4.0) for e in EPOCHS],
            ["waited 40% of its time for data", "(--workers, now 4)"],
        ),
        ([train_record(e, data_seconds=2.0) for e in EPOCHS], ["too little in this run folder"]),
    ],
)
def test_training(records: list[dict[str, Any]], said: list[str], tmp_path: Path) -> None:
    lines = advise(read_story(make_run(tmp_path / "run", records)), None)
    assert len(lines) == 1, lines
    for part in said:
        assert part in lines[0]


def box(k: int, label: int = 0, side: float = 40) -> Box:
    """The k-th of objects in a row."""
    return 60.0 * k, 10.0, 60.0 * k + side, 10.0 + side, label


ROW = [box(k) for k in range(6)]
SMALL = [box(k, side=15) for k in range(6)]  # 416 / sqrt(640 * 480) * 15: 11 pixels


@pytest.mark.parametrize(
    ("objects", "found", "said"),
    [
        ([], [], "no object"),
        (ROW, [(b, 0.9) for b in ROW], "Nearly everything is found and right"),
        (ROW, [], "100% of the AP that mistakes cost is due to missed objects, most of them not"),
        (SMALL, [], "objects, 100% of which are smaller than 16 pixels at the size 416: a larger"),
        (
            [box(k, k % 2) for k in range(6)],
            [(box(k, 0), 0.9) for k in range(6)],
            "wrong classes (most often class 1 is taken for class 0, 3 times)",
        ),
        (ROW, [((b[0] + 24, *b[1:]), 0.9) for b in ROW], "due to poor boxes"),
        (
            ROW,
            [(b, 0.9 - k / 100 - j / 1000) for k, b in enumerate(ROW) for j in range(3)],
            "found twice: a lower --set decode.iou_threshold (now 0.45)",
        ),
        (
            ROW,
            [((*FAR, 0), 0.95)] * 6 + [(b, 0.9) for b in ROW],
            "detections where nothing is labelled",
        ),
    ],
)
def test_mistakes(
    objects: list[Box], found: list[tuple[Box, float]], said: str, tmp_path: Path
) -> None:
    seen = examine(make_found(make_index([objects]), [detections(*found)]))
    lines = advise(read_story(make_run(tmp_path / "run", [])), seen)
    assert len(lines) <= MOST
    assert said in lines[0], lines


def test_few_objects(tmp_path: Path) -> None:
    objects = [[box(0, 1)], [box(k) for k in range(30)]]
    found: list[Detections] = [detections(), detections(*((box(k), 0.9) for k in range(15)))]
    seen = examine(make_found(make_index(objects), found))
    lines = advise(read_story(make_run(tmp_path / "run", [])), seen)
    assert any("class 1: validation has only 1 object of it" in line for line in lines), lines
