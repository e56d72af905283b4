"""Drawings: whole XML, without a colour of their own; Python's XML parser is the judge."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import pytest

from triscale.page import Html
from triscale.report.plots import Curve, bars, curves, reliability, stacked

NAN = float("nan")
DRAWINGS: dict[str, Callable[[], Html]] = {
    "nothing": lambda: curves("T", [], x="x", y="y"),
    "one point": lambda: curves("T", [Curve("a", [0], [1], 0)], x="x", y="y", whole=True),
    "no number": lambda: curves("T", [Curve("a", [0, 1], [NAN, NAN], 0)], x="x", y="y"),
    "lines": lambda: curves(
        "T",
        [Curve("a", [0, 1], [1, 2], 0), Curve("b", [0, 1], [1, 0], 11), Curve("", [0], [0], None)],
        x="x",
        y="y",
        limits=(0, 1),
        mark=(0, 1),
    ),
    "no bars": lambda: bars("T", [], [], x="x", labels=[]),
    "bars": lambda: bars("T", ["a", "<b>"], [0.5, NAN], x="x", labels=["0.500", "nan"]),
    "scores": lambda: reliability("T", [0, 0.5, 1], [NAN, 0.7]),
    "parts": lambda: stacked("T", [0, 1], [Curve("a", [0, 1], [1, NAN], 0)], y="y"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings(name: str) -> None:
    before = dict(matplotlib.rcParams)
    drawing = DRAWINGS[name]()
    assert dict(matplotlib.rcParams) == before
    assert drawing == DRAWINGS[name](), "the same drawing twice is the same text"
    (text,) = re.findall(r"<svg.*</svg>", drawing, re.S)
    root = ElementTree.fromstring(text)
    assert root.attrib["role"] == "img"
    assert not re.findall(r"#[0-9a-f]{6}\b(?!\")", re.sub(r'(href="|url\()#\w+', "", text))
    assert "currentColor" in text or "var(--" in text
    assert "<style" not in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert len(text) < 30_000


def texts_of(drawing: Html) -> set[str]:
    (text,) = re.findall(r"<svg.*</svg>", drawing, re.S)
    return {text.strip() for text in ElementTree.fromstring(text).itertext()}


def test_texts_stay_as_they_are() -> None:
    """Numbers are shortened in coordinates only."""
    assert {"a", "<b>", "0.500", "\u2013"} <= texts_of(DRAWINGS["bars"]())


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("$\\frac$ or $x$", "$\\frac$ or $x$"),  # no formula, and no mistake in one
        ("$$", "$$"),
        ("血小板", "血小板"),  # Matplotlib's font lacks these letters
        ("n" * 300, "n" * 23 + "\u2026"),
    ],
)
def test_names_of_bars(name: str, written: str) -> None:
    assert written in texts_of(bars("T", [name, "b"], [0.5, 0.5], x="x", labels=["1", "2"]))
