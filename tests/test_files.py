"""Writing is all or nothing."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from triscale.files import locked, remove_leftovers, replace_atomically, write_atomically


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


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    other = (
        "import sys; from pathlib import Path; from triscale.files import locked\n"
        "with locked(Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", other, str(tmp_path)]
    with locked(tmp_path):
        held = subprocess.run(command, capture_output=True, text=True, check=False)
        assert held.returncode == 1
        assert f"{tmp_path}: another process is at work in this folder" in held.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in (".best.safetensors.17.tmp", "best.safetensors"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        replace_atomically(tmp_path / "a.bin", full)
    assert caught.value.filename == str(tmp_path / "a.bin")
