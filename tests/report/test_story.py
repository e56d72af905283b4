"""What a run folder tells; the expected values are what the test wrote into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.report.making import (
    detections,
    eval_record,
    make_found,
    make_index,
    make_run,
    train_record,
)
from triscale.errors import UserError
from triscale.report.found import BEST, LAST, save_found
from triscale.report.story import epoch_seconds, read_story

FOUND = make_found(make_index([[]]), [detections()])


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([], None),
        ([None], None),
        ([0.1, 0.3, 0.3, 0.2], 1),
        ([None, 0.0], 1),
    ],
)
def test_best(scores: list[float | None], best: int | None, tmp_path: Path) -> None:
    story = read_story(
        make_run(tmp_path / "run", [eval_record(k, s) for k, s in enumerate(scores)])
    )
    assert (story.best and story.best["epoch"]) == best


def test_records(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        [
            train_record(0, step=5),
            train_record(0),
            {"kind": "skipped", "step": 12, "what": "loss"},
            {"kind": "rollback", "step": 10, "from": 13},
            train_record(1, data_seconds=2.0),
        ],
    )
    with (run / "log.jsonl").open("a") as log:
        log.write('7\n{"kind": "train", "step": 20}\n{"kind": "tr')  # the last in the making
    story = read_story(run)
    assert [record["step"] for record in story.epochs] == [10, 20]
    assert (story.skipped, story.rollbacks) == (1, 1)
    assert "2 lines are no records" in story.notes[0]
    # 10 steps of 8 pictures, 8 a second
    assert [epoch_seconds(story, k) for k in (0, 1)] == [(10.0, 0.5), (10.0, 2.0)]


@pytest.mark.parametrize("speed", [0.0, None])
def test_no_speed(speed: float | None, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [train_record(0, images_per_second=speed)])
    assert epoch_seconds(read_story(run), 0).steps == 0


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run folder"):
        read_story(tmp_path)
    run = make_run(tmp_path / "run", [])
    (run / "log.jsonl").unlink()
    assert "there is no log" in read_story(run).notes[0]


@pytest.mark.parametrize(
    ("best", "last", "evals", "shown"),
    [
        (None, None, [(9, 0.5)], None),
        (100, None, [(9, 0.5)], 100),
        (90, 100, [(8, 0.4), (9, 0.5)], 100),  # the newest is the best
        (90, 100, [(8, 0.6), (9, 0.5)], 90),
        (80, 100, [(7, 0.4), (8, 0.6), (9, 0.5)], None),  # of other weights than the best
        (None, 100, [(9, None)], 100),
        (None, None, [], None),
        (100, None, [], 100),
    ],
)
def test_which_detections(
    best: int | None,
    last: int | None,
    evals: list[tuple[int, Any]],
    shown: int | None,
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", [eval_record(*each) for each in evals])
    for step, name in ((best, BEST), (last, LAST)):
        if step:
            save_found(run / name, FOUND._replace(about={**FOUND.about, "step": step}))
    found = read_story(run).found
    assert (found and found.about["step"]) == shown


def test_damaged_detections(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [eval_record(9, 0.5)])
    (run / BEST).write_bytes(b"x" * 100)
    story = read_story(run)
    assert story.found is None
    assert "damaged" in story.notes[0]
    assert json.dumps(story.notes)
