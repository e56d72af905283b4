"""The page about a run: each kind of run has one, and a browser (Chromium) finds it in order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
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
from triscale.report.build import duration, make_page, write_report
from triscale.report.compare import make_comparison
from triscale.report.found import Found
from triscale.report.story import Story, read_story

NAN = float("nan")
OBJECT: Box = (100, 100, 200, 180, 0)
SECTIONS = ["Classes", "Confusion", "Scores", "Size of objects", "Precision and recall"]


def some_story(folder: Path, classes: int = 2) -> Story:
    """A run whose best validation, the last, has something of everything."""
    paths = [str(folder.with_name(f"{i}.jpg")) for i in range(4)]
    for path in paths:
        cv2.imwrite(path, np.full((480, 640, 3), 128, np.uint8))
    objects: list[list[Box]] = [[OBJECT], [OBJECT, (300, 20, 330, 50, classes - 1)], [OBJECT], []]
    index = make_index(objects, classes=classes, paths=paths)
    shown = detections((OBJECT, 0.9), ((*FAR, classes - 1), 0.8))
    found = make_found(index, [shown, detections((OBJECT, 0.7)), detections(), shown], mAP=0.6)
    records = [
        record
        for epoch in range(10)
        for record in (train_record(epoch), eval_record(epoch, 0.06 * (epoch + 1)))
    ]
    return read_story(make_run(folder, records, found))


def empty_found(index_objects: list[list[Box]], **about: Any) -> Found:
    index = make_index(index_objects, classes=1)
    return make_found(index, [detections()] * len(index_objects), **about)


NOTHING: list[tuple[list[dict[str, Any]], Found | None]] = [
    ([], None),  # begun, and no more
    ([train_record(0)], None),  # no validation yet
    ([train_record(0, loss=NAN, objectness=NAN), eval_record(0, None)], None),
    ([train_record(9, step=100), eval_record(9, None)], empty_found([], mAP=None)),
    ([train_record(9, step=100), eval_record(9, None)], empty_found([[]], mAP=None, per_class={})),
    ([train_record(9, step=100), eval_record(9, 0.0)], empty_found([[OBJECT]], mAP=0.0)),
    ([{"kind": "skipped", "step": 3, "what": "loss"}], empty_found([[OBJECT]], mAP=0.0)),
]


@pytest.mark.parametrize(("records", "found"), NOTHING)
def test_little_to_show(records: list[dict[str, Any]], found: Found | None, tmp_path: Path) -> None:
    if found and records:
        found = found._replace(about={**found.about, "step": records[-1]["step"]})
        records = [{**each, "step": records[-1]["step"]} for each in records]
    story = read_story(make_run(tmp_path / "run", records, found))
    page = make_page(story)
    assert (story.found is None) == (found is None)
    assert "What to do next" in page
    assert ("measures the best weights again" in page) == (found is None)
    assert ">nan<" not in page
    for section in SECTIONS:
        assert (f"<h2>{section}</h2>" in page) == (found is not None)


@pytest.mark.parametrize("classes", [1, 2, 8, 9, 30])
def test_numbers(classes: int, tmp_path: Path) -> None:
    story = some_story(tmp_path / "run", classes)
    write_report(story, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    without = re.sub(r"data:image/jpeg;base64,[^\"]*", "", page)
    assert len(without) < 3_000_000
    assert "0.6000" in without  # the best mAP of the log
    assert "Figures of the best weights (after epoch 9)" in without
    # two right (0.9, 0.7), three wrong (0.9, 0.8, 0.8), four objects: 4 / (4 + 3 + 2) at 0.70
    assert f"triscale predict {tmp_path}/run PICTURES --score 0.70" in without
    assert "<b>0.444</b><span>F1 there" in without
    assert "train --resume" not in without  # it is finished
    for section in SECTIONS:
        assert f"<h2>{section}</h2>" in without
    # best: 0 and 1; worst: 2 and 3; false: in 0 and 3; missed: in 1 and 2
    assert page.count("<figure>") == 2 + 2 + 2 + 2


def test_an_unfinished_run(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    page = make_page(read_story(make_run(folder, [train_record(0), eval_record(0, 0.1)])))
    assert f"triscale train --resume &#x27;{folder}&#x27;" in page
    assert "1 of 10" in page


def test_pictures_are_gone(tmp_path: Path) -> None:
    story = some_story(tmp_path / "run")
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    page = make_page(story)
    assert "pictures of the validation split can&#x27;t be shown" in page
    assert "<figure>" not in page


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99.4, "99 s"), (150, "2 min"), (7200, "2.0 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("what", ["report", "comparison"])
def test_in_a_browser(what: str, browser: Any, tmp_path: Path) -> None:
    stories = [some_story(tmp_path / name / "run", 30) for name in ("a", "b")]
    page = make_page(stories[0]) if what == "report" else make_comparison(stories)
    (tmp_path / "page.html").write_text(page)
    said: list[str] = []
    asked: list[str] = []
    for scheme, blue in (("light", "rgb(0, 114, 178)"), ("dark", "rgb(74, 168, 224)")):
        tab = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((tmp_path / "page.html").as_uri())
        assert tab.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        classes = tab.locator("section#classes table.sortable")
        cells = classes.locator("tbody tr td:first-child")
        before = cells.all_inner_texts()
        classes.locator("th").first.locator("button").click()
        after = cells.all_inner_texts()
        assert sorted(before) == sorted(after)
        by_number = [f"class {k}" for k in sorted(range(30), key=str)]
        assert after == by_number
        colours = tab.evaluate(
            "[...document.querySelectorAll('.drawing svg path')].map(p => "
            "getComputedStyle(p).stroke + getComputedStyle(p).fill).join(' ')"
        )
        assert blue in colours
        tab.close()
    assert said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert len({url for url in asked if url.startswith("file")}) == 1
