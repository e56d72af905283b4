"""Figures by hand, and advice where one is bad."""

from __future__ import annotations

import numpy as np
import pytest

from tests.preview.test_drawing import made
from triscale.preview.figures import advice, class_rows, figures_of, objects_of, stride_rows
from triscale.preview.seen import Seen

BOX, SMALL = (60.0, 70.0, 120.0, 110.0), (10.0, 10.0, 17.0, 19.0)  # the root of 63 is 7.9
PLAIN = made([(BOX, 16, (5, 5), True, True)])
LOSING = made([(BOX, 16, (5, 5), True, False), (SMALL, 16, (5, 5), True, True)])
MANY = made(
    [
        (BOX, 32, (2, 2), True, True),
        (BOX, 16, (5, 5), False, False),
        (BOX, 16, (4, 5), False, True),
    ],
    objects=(0, 0, 0),
)
UNLIKE = PLAIN._replace(overlaps=np.array([0.5]))
FILL = PLAIN._replace(filled=0.5)


def test_nothing() -> None:
    """A sample without objects, and no division by their number."""
    found = {figure.name: figure for figure in figures_of([made()])}
    assert found["objects a sample"].value == "0.0"
    assert found["objects that lose their cell"][1:] == ("-", "0 of 0")
    assert found["objects cut off"][1:] == ("100.0%", "2 of 2")
    assert advice([made()]) == ["There is no object in these samples."]
    assert class_rows([made()], ["a"]) == [("a", 0, 0, 0, 0)]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (
            [PLAIN, LOSING],
            {
                "samples": ("2", ""),
                "input": ("256x192", ""),
                "objects a sample": ("1.5", ""),
                "objects cut off": ("57.1%", "4 of 7"),
                "objects smaller than 8 pixels": ("33.3%", "1 of 3"),
                "objects that no anchor overlaps by half": ("0.0%", "0 of 3"),
                "objects that lose their cell": ("33.3%", "1 of 3"),
                "predictions an object gets": ("0.67", ""),
                "at stride 16": ("100.0%", "2 of 2"),
                "fill beside the pictures": ("25%", ""),
                "padding among the labels": ("40.0%", "2 of 5"),
            },
        ),
        (
            [MANY, made(size=(64, 64))],
            {
                "input": ("64x64 to 256x192", ""),
                "predictions an object gets": ("2.00", ""),
                "predictions lost to others": ("33.3%", "1 of 3"),
                "objects that lose their cell": ("0.0%", "0 of 1"),
                "at stride 32": ("50.0%", "1 of 2"),
                "at stride 16": ("50.0%", "1 of 2"),
            },
        ),
    ],
)
def test_figures(samples: list[Seen], expected: dict[str, tuple[str, str]]) -> None:
    found = {figure.name: figure[1:] for figure in figures_of(samples)}
    assert {name: found[name] for name in expected} == expected


def test_mixtures_are_counted() -> None:
    mixed = PLAIN._replace(draw=PLAIN.draw._replace(partner=1, ratio=0.5))
    mosaic = PLAIN._replace(draw=PLAIN.draw._replace(tiles=(1, 2, 3)))
    found = {figure.name: figure.detail for figure in figures_of([mixed, mosaic, PLAIN])}
    assert (found["mixups"], found["mosaics"]) == ("1 of 3", "1 of 3")
    assert not {"mixups", "mosaics"} & {figure.name for figure in figures_of([PLAIN])}


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([PLAIN], ["Nothing here asks for other settings"]),
        ([LOSING], ["50.0% of the objects have no prediction", "smaller than 8 pixels"]),
        ([LOSING] + [PLAIN] * 49, ["Nothing"]),  # 1 of 51 is below 2 %
        ([UNLIKE], ["triscale anchors DATA"]),
        ([UNLIKE] + [PLAIN] * 5, ["Nothing"]),
        ([FILL], ["More than half of the input is fill"]),
    ],
)
def test_advice(samples: list[Seen], words: list[str]) -> None:
    found = advice(samples)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_tables() -> None:
    anchors = (((20.0, 30.0), (81.0, 82.0)), ((20.0, 30.0), (10.0, 14.0)))
    assert stride_rows([PLAIN, MANY], anchors) == [
        (32, "20x30", 1, 1, 0),
        (32, "81x82", 0, 0, 0),
        (16, "20x30", 3, 2, 1),
        (16, "10x14", 0, 0, 0),
    ]
    other = LOSING._replace(labels=np.array([0, 1]))
    assert class_rows([other, UNLIKE], ["a", "b", "c"]) == [
        ("a", 2, 1, 1, 0),
        ("b", 1, 0, 0, 1),
        ("c", 0, 0, 0, 0),
    ]
    assert objects_of([other]).lost.tolist() == [True, False]
