"""Writing is all or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from triscale.files import replace_atomically, write_atomically


@pytest.mark.parametrize("data", [b"", b"new", bytes(range(256)) * 1000])
@pytest.mark.parametrize("old", [None, b"old and longer than the new"])
def test_replaces(data: bytes, old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    write_atomically(path, data)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_write_that_fails_changes_nothing(old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ha")
        assert path.exists() == (old is not None), "the target is untouched while we write"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_atomically(path, half)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_interruption_removes_the_temporary(tmp_path: Path) -> None:
    def interrupted(temporary: Path) -> None:
        temporary.touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_atomically(tmp_path / "file", interrupted)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    """A file where a folder should be stops root, too, unlike missing permissions."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        write_atomically(tmp_path / "file" / "inside", b"")


def test_files_have_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
