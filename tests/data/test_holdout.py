"""Held out pictures: how many, which ones (worked out with sha256sum), and always the same."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from triscale.data.holdout import divide, held_out
from triscale.data.index import Index, PackedStrings


def make(names: list[str]) -> Index:
    """An index of these pictures, the first without an object, the second with one, and so on."""
    offsets = np.cumsum([0, *range(len(names))])
    count = int(offsets[-1])
    return Index(
        name="made",
        classes=("a",),
        paths=PackedStrings(names),
        ids=PackedStrings(names),
        sizes=np.full((len(names), 2), 9, np.int32),
        offsets=offsets,
        boxes=np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1)),
        labels=np.zeros(count, np.int32),
        difficult=np.zeros(count, np.bool_),
        crowd=np.zeros(count, np.bool_),
        areas=np.ones(count, np.float32),
    )


@pytest.mark.parametrize(
    ("pictures", "part", "count"),
    [(0, 0.1, 0), (9, 0.5, 0), (10, 0.0, 0), (10, 0.01, 1), (10, 0.1, 1), (292, 0.1, 29)],
)
def test_how_many(pictures: int, part: float, count: int) -> None:
    index = make([f"{i:03}" for i in range(pictures)])
    ids = held_out(index, part)
    assert len(ids) == count
    rest, held = divide(index, ids)
    assert [*held.ids] == [name for name in index.ids if name in ids]
    assert sorted([*rest.ids, *held.ids]) == list(index.ids)
    assert len(rest.boxes) + len(held.boxes) == len(index.boxes)


def test_pictures_of_one_name_stay_together() -> None:
    assert held_out(make(["a"] * 20), 0.1) == frozenset()
    names = [f"{i // 2}" for i in range(40)]
    rest, held = divide(make(names), held_out(make(names), 0.1))
    assert (len(rest), len(held)) == (36, 4)
    assert not set(rest.ids) & set(held.ids)


def test_which_ones() -> None:
    """Those whose names have the least SHA-256 sums, in whatever order they come."""
    names = [f"picture-{i}" for i in range(12)] + ["Br\u00fccke", "odd-\udcff"]
    sums = {}
    for name in names:
        word = name.encode("utf-8", "surrogateescape")
        said = subprocess.run("sha256sum", input=word, capture_output=True, check=True).stdout
        sums[name] = said.split()[0].decode()
    expected = set(sorted(names, key=sums.__getitem__)[:4])
    assert held_out(make(names), 0.3) == expected
    assert held_out(make(names[::-1]), 0.3) == expected
