"""Galleries: the pictures that belong in them, in colours that are looked up in the JPEG."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.report.making import FAR, Box, detections, make_found, make_index
from triscale.report.found import examine
from triscale.report.galleries import PICTURES, WIDTH, make_galleries

GREY = np.full((480, 640, 3), 128, np.uint8)
OBJECT: Box = (100, 100, 200, 180, 0)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{i}.jpg") for i in range(20)]
    for path in paths:
        assert cv2.imwrite(path, GREY)
    return paths


def last_picture(body: str) -> NDArray[np.uint8]:
    data = base64.b64decode(re.findall(r"base64,([^\"]*)", body)[-1])
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def test_nothing() -> None:
    seen = examine(make_found(make_index([]), []))
    galleries = make_galleries(seen.found.index, seen.packed, seen.analysis)
    assert (galleries.parts, galleries.lost) == ([], [])


def test_what_is_in_them(pictures: list[str]) -> None:
    """0: right; 1: missed; 2: missed, and something false; the others: nothing at all."""
    index = make_index([[OBJECT], [OBJECT], [OBJECT], *[[]] * 17], paths=pictures)
    found = [detections((OBJECT, 0.9)), detections(), detections(((*FAR, 1), 0.95))]
    seen = examine(make_found(index, [*found, *[detections()] * 17]))
    parts, lost = make_galleries(index, seen.packed, seen.analysis)
    captions = {
        title: re.findall("<figcaption>(.*?)</figcaption>", body) for title, _, body in parts
    }
    assert captions == {
        "Worst pictures": ["2: 0 found, 1 missed, 1 wrong", "1: 0 found, 1 missed, 0 wrong"],
        "Most confident mistakes": ["class 1 0.95: nothing there (2)"],
        "Missed objects": ["class 0, 100x80 pixels (1)", "class 0, 100x80 pixels (2)"],
        "Best pictures": ["0: 1 found, 0 missed, 0 wrong"],
    }
    assert lost == []
    expected = {"Best pictures": (0, 158, 115), "Worst pictures": (240, 228, 66)}
    for title, _, body in parts:
        if title in expected:  # the left edge of the object, in the last picture
            image = last_picture(body)
            assert image.shape[1] == WIDTH
            scale = WIDTH / 640
            edge = image[round(140 * scale), round(100 * scale) - 1 : round(100 * scale) + 2, ::-1]
            distance = np.abs(edge.astype(int) - expected[title]).sum(-1).min()
            assert distance < 120, (title, edge)


def test_names_in_any_script(pictures: list[str]) -> None:
    """Two of the same length, of none of whose letters OpenCV knows anything."""
    index = replace(make_index([[OBJECT]], paths=pictures[:1]), classes=("собака", "корова"))
    bodies: list[str] = []
    for label in (0, 1):
        seen = examine(make_found(index, [detections(((*FAR, label), 0.9))]))
        parts, _ = make_galleries(index, seen.packed, seen.analysis)
        bodies += [body for title, _, body in parts if title == "Most confident mistakes"]
    dog, cow = map(last_picture, bodies)
    assert (np.abs(dog.astype(int) - cow) > 100).any()


def test_they_are_bounded(pictures: list[str]) -> None:
    index = make_index([[OBJECT]] * 20, paths=pictures)
    seen = examine(make_found(index, [detections(((*FAR, 1), 0.9))] * 20))
    parts, _ = make_galleries(index, seen.packed, seen.analysis)
    assert [body.count("<figure>") for _, _, body in parts] == [PICTURES] * 3


def test_lost_pictures(pictures: list[str]) -> None:
    Path(pictures[0]).unlink()
    cv2.imwrite(pictures[1], GREY[:100])  # another one by now
    index = make_index([[OBJECT]] * 3, paths=pictures[:3])
    seen = examine(make_found(index, [detections()] * 3))
    parts, lost = make_galleries(index, seen.packed, seen.analysis)
    assert {title: body.count("<figure>") for title, _, body in parts} == {
        "Worst pictures": 1,
        "Missed objects": 1,
    }
    assert any("0.jpg" in line and "No such file" in line for line in lost)
    assert any("1.jpg: expected 640x480 pixels" in line for line in lost)


@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 0.0, 0.0, 0),
        (-1e9, -1e9, 1e9, 1e9, 0),
        (float("nan"), 0.0, float("inf"), 5.0, 0),
        (639.0, 479.0, 700.0, 500.0, 0),
    ],
)
def test_odd_boxes(box: Box, pictures: list[str]) -> None:
    index = make_index([[]], paths=pictures[:1])
    seen = examine(make_found(index, [detections((box, 0.9))]))
    parts, _ = make_galleries(index, seen.packed, seen.analysis)
    assert [title for title, _, _ in parts] == ["Worst pictures", "Most confident mistakes"]
