"""Runs side by side; the expected values are what the test wrote into their folders."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.making import eval_record, make_run, train_record
from tests.report.test_build import some_story
from triscale.errors import UserError
from triscale.page import escape
from triscale.report.compare import make_comparison, run_names, write_comparison
from triscale.report.story import read_story


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/r/a"], ["a"]),
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/1/run", "/r/2/run"], ["1/run", "2/run"]),
    ],
)
def test_names(folders: list[str], names: list[str]) -> None:
    assert run_names([Path(folder) for folder in folders] or []) == names


def text_of(page: str) -> str:
    return re.sub(r"<[^>]+>", " ", page.split("<main>")[1])


def test_a_comparison(tmp_path: Path) -> None:
    one, two = (some_story(tmp_path / name / "run") for name in ("a", "b"))
    recipe = replace(two.recipe, optim=replace(two.recipe.optim, lr=0.125))
    recipe = replace(recipe, data=replace(recipe.data, path="/elsewhere"))
    write_comparison([one, two._replace(recipe=recipe)], tmp_path / "page.html")
    text = text_of((tmp_path / "page.html").read_text())
    assert "optim.lr" in text
    assert "0.125" in text
    assert "data.path" not in text  # a place, no choice
    assert "a/run" in text
    assert "+0.0000" in text
    assert "One run of each" in text
    assert "validated on different data" not in text  # other paths, the same labels


def test_the_same_recipe(tmp_path: Path) -> None:
    stories = [some_story(tmp_path / name / "run") for name in ("a", "b")]
    assert "The recipes are the same." in make_comparison(stories)


def test_other_data_and_less(tmp_path: Path) -> None:
    """Other classes; a run without a validation; one that has only begun."""
    stories = [
        some_story(tmp_path / "a" / "run"),
        some_story(tmp_path / "b" / "run", classes=3),
        read_story(make_run(tmp_path / "c", [train_record(0), eval_record(0, None)])),
        read_story(make_run(tmp_path / "d", [])),
    ]
    page = make_comparison(stories)
    text = text_of(page)
    assert str(escape("The runs were validated on different data")) in page
    assert "class 2" in text
    assert "nan" not in text.split()
    assert make_comparison(stories[2:])


def test_twice_the_same(tmp_path: Path) -> None:
    story = some_story(tmp_path / "run")
    with pytest.raises(UserError, match="the same one twice"):
        make_comparison([story, story])
