"""What lies in the folder of a data set, and what leads out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from triscale.data.pictures import picture_sizes
from triscale.data.root import DataRoot
from triscale.errors import UserError


def test_pictures_outside_of_the_data_set(tmp_path: Path) -> None:
    """Links and `..` may do what they like inside; a link may also be the root itself."""
    real = tmp_path / "real"
    (real / "folder").mkdir(parents=True)
    for place in (real, tmp_path, real / "folder"):
        Image.new("L", (4, 3)).save(place / "a.png")
    (tmp_path / "root").symlink_to(real)
    (real / "inside.png").symlink_to(real / "folder" / "a.png")
    (real / "outside.png").symlink_to(tmp_path / "a.png")
    (real / "up").symlink_to(tmp_path)
    root = DataRoot(tmp_path / "root")
    for name in ("a.png", "inside.png", "folder/../a.png", "up/real/a.png"):
        for path in (tmp_path / "root" / name, real / name):
            assert picture_sizes([path], root) == [(3, 4)]
    for path in (real / "outside.png", real / "../a.png", real / "up/a.png", tmp_path / "a.png"):
        with pytest.raises(UserError, match=r"a set .*root \(it is .*\); .* data\.outside=true"):
            picture_sizes([real / "a.png", path], root)
        assert picture_sizes([path], DataRoot(real, outside=True)) == [(3, 4)]
    (missing,) = picture_sizes([tmp_path / "none.png"], root)  # nothing to be protected
    assert "can't be read (No such file" in str(missing)
    assert not DataRoot(tmp_path / "ro").holds(tmp_path / "root")  # a name's beginning isn't enough


def test_a_folder_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(str(path)) or real(path))
    root = DataRoot(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "50")
    for name in (*range(100), "link"):
        root.require(tmp_path / str(name))
    assert resolved == [str(tmp_path), str(tmp_path), str(tmp_path / "link")]
