"""Writing is all or nothing."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from triscale.files import (
    cache_folder,
    locked,
    naming,
    remove_leftovers,
    replace_atomically,
    write_atomically,
)


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


def test_a_lock_that_cannot_be_had_names_its_folder() -> None:
    with pytest.raises(FileNotFoundError) as caught, locked(Path("/proc/self")):
        pass
    assert caught.value.filename == "/proc/self"


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    """But not in the folders inside, which may be other runs, nor what others are writing."""
    (tmp_path / "inside").mkdir()
    for name in (".best.safetensors.17.tmp", "inside/.a.jpg.8.tmp", "a.jpg", ".theirs.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".theirs.tmp", "a.jpg", "inside"]
    assert list((tmp_path / "inside").iterdir())


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        replace_atomically(tmp_path / "a.bin", full)
    assert caught.value.filename == str(tmp_path / "a.bin")


def test_the_first_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that can't be written any more does not let us remove the temporary file either."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", ".temporary")

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "unlink", fails)
    with pytest.raises(OSError, match="No space left") as caught:
        replace_atomically(tmp_path / "a.bin", full)
    assert caught.value.filename == str(tmp_path / "a.bin")


def test_an_error_of_the_folder_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flushing the folder comes after the file is replaced, and its errors have no name."""
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_atomically(tmp_path / "a.bin", b"new")
    assert caught.value.filename == str(tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "full"), "real"),
        (OSError(errno.ENOSPC, "full", "temporary"), "real"),
        (OSError(errno.ENOENT, "missing", "another"), "another"),
        (OSError(errno.ENOENT, "missing", "real/.lock"), "real"),  # in a folder
        (OSError(errno.ENOENT, "missing", "real/a/.lock"), "real/a/.lock"),
        (OSError(errno.ENOSPC, "full", "temporary/a/b"), "real"),
        (OSError(errno.ENOENT, "missing", 7), 7),  # a descriptor
        (OSError("a text"), None),
    ],
)
def test_naming(error: OSError, named: str | int | None) -> None:
    with (
        pytest.raises(OSError, match=r"full|missing|a text") as caught,
        naming(Path("real"), Path("temporary")),
    ):
        raise error
    assert caught.value.filename == named


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/home/me/.cache/triscale"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/triscale"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/triscale"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/triscale"),
        ({"XDG_CACHE_HOME": "/x", "TRISCALE_CACHE": ""}, "/x/triscale"),
        ({"XDG_CACHE_HOME": "/x", "TRISCALE_CACHE": "/y"}, "/y"),
    ],
)
def test_cache_folder(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "TRISCALE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | variables).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)
