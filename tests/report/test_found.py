"""Validations on disk: what was written comes back, and nothing else is taken for it.

What a file holds is read with numpy, and what the analysis says of two pictures is counted by hand.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.report.making import FAR, Box, detections, make_found, make_index
from triscale.errors import UserError
from triscale.report.found import examine, load_found, save_found

OBJECTS: list[list[list[Box]]] = [
    [],
    [[]],
    [[(0, 0, 10, 10, 1)], [], [(5, 5, 50, 50, 0), (1, 2, 3, 4, 1)]],
]


@pytest.mark.parametrize("objects", OBJECTS)
def test_it_comes_back(objects: list[list[Box]], tmp_path: Path) -> None:
    index = make_index(objects)
    found = make_found(index, [detections(((*FAR, 1), 0.5), ((*FAR, 0), 0.25))] * len(objects))
    save_found(tmp_path / "a.npz", found)
    back = load_found(tmp_path / "a.npz")
    assert dict(back.about).items() >= found.about.items()
    assert list(back.index.paths) == list(index.paths)
    assert list(back.index.ids) == list(index.ids)
    assert back.index.classes == index.classes
    for name in ("sizes", "offsets", "boxes", "labels", "difficult", "crowd", "areas"):
        assert np.array_equal(getattr(back.index, name), getattr(index, name))
    assert len(back.detections) == len(objects)
    for one, other in zip(back.detections, found.detections, strict=True):
        for field in ("boxes", "scores", "labels"):
            assert np.array_equal(getattr(one, field), getattr(other, field))
            assert getattr(one, field).dtype == getattr(other, field).dtype
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert len(arrays["found_scores"]) == 2 * len(objects)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_paths_hold_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_found(Path("a.npz"), make_found(make_index([[]], paths=["b/c.jpg"]), [detections()]))
    monkeypatch.chdir("/")
    assert load_found(tmp_path / "a.npz").index.paths[0] == os.path.join(tmp_path, "b/c.jpg")


def test_damage(tmp_path: Path) -> None:
    """Every file that is cut short, and one with a flipped bit in each of many places."""
    path = tmp_path / "a.npz"
    save_found(path, make_found(make_index([[(0, 0, 10, 10, 1)]]), [detections(((*FAR, 1), 0.5))]))
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at])
        with pytest.raises(UserError, match=r"a\.npz: damaged"):
            load_found(path)
    refused = 0
    for at in range(0, len(whole), 13):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            load_found(path)
        except UserError:
            refused += 1
    assert refused > 50
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        load_found(path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, about=np.frombuffer(b'{"format": "x"}', np.uint8))
    with pytest.raises(UserError, match="another version"):
        load_found(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match="damaged"):
        load_found(path)


def test_examine() -> None:
    """Two of three objects are found, above a false one: F1 is best at 0.8, 2 * 2 / (2 * 2 + 1)."""
    index = make_index([[(0, 0, 10, 10, 0), (50, 50, 90, 90, 1)], [(5, 5, 50, 50, 0)]])
    first = detections(((0, 0, 10, 10, 0), 0.9), ((50, 50, 90, 90, 1), 0.8), ((*FAR, 0), 0.7))
    seen = examine(make_found(index, [first, detections()]))
    assert seen.analysis.threshold == pytest.approx(0.8)
    assert seen.analysis.f1.best == pytest.approx(0.8)
    assert seen.analysis.missed.tolist() == [2]
