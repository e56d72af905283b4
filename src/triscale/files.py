"""Files that are either the old one or the new one, never half of each; and only files are read."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from zipfile import BadZipFile

from triscale.errors import UserError

# all that zipfile raises for a file that is no zip, a truncated, an encrypted or a damaged one
ZIP_ERRORS = (BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


def cache_folder() -> Path:
    """Where downloads and opened data sets are kept: $TRISCALE_CACHE, $XDG_CACHE_HOME/triscale or
    ~/.cache/triscale."""
    if own := os.environ.get("TRISCALE_CACHE"):
        return Path(own).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the specification of these folders ignores any other
        return base / "triscale"
    try:
        return Path.home() / ".cache" / "triscale"
    except RuntimeError as error:
        raise UserError("no home folder to keep downloads in; set TRISCALE_CACHE") from error


def open_regular(path: Path, *, limit: int) -> BufferedReader:
    """`path`, opened to be read; UserError unless it is a regular file of at most `limit` bytes."""
    try:
        state = path.stat()
        if stat.S_ISREG(state.st_mode) and state.st_size <= limit:
            return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except ValueError as error:  # a zero byte, half a surrogate pair
        raise UserError(f"{str(path)!r:.500}: not the name of a file") from error
    if stat.S_ISREG(state.st_mode):
        raise UserError(f"{path}: larger than {limit:,} bytes")
    what = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe, socket or device"
    raise UserError(f"{path}: can't be read (expected a file, found {what})")


def read_regular(path: Path, *, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; UserError if there is none."""
    try:
        with open_regular(path, limit=limit) as stream:
            return stream.read()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error


def read_lines(path: Path, *, limit: int) -> list[str]:
    """The lines of a regular text file in UTF-8; UserError if it can't be read."""
    try:
        return read_regular(path, limit=limit).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 (byte {error.start})") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: written beside it, flushed to disk, renamed."""
    replace_atomically(path, lambda temporary: temporary.write_bytes(data))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write` puts into the temporary path it is given.

    A crash at any moment leaves the old file (or none) or the whole new one. Raises an OSError that
    names `path`; the temporary file is removed then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path, temporary):
        try:
            write(temporary)
            flush(temporary)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # a disk that failed may fail again: the first error is told
                temporary.unlink(missing_ok=True)
            raise
        flush(path.parent)  # the rename itself


@contextmanager
def naming(path: Path, *others: Path) -> Generator[None]:
    """Let an OSError name `path` if it names no file, as of a full disk, or one of `others` or what
    lies in them.

    If `path` is a folder, a file right in it counts too: nobody knows the names of our locks and
    temporary files.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        ours = named is None
        if isinstance(named, str):
            inside = any(Path(named).is_relative_to(other) for other in others)
            ours = inside or os.path.dirname(named) == str(path)
        if error.errno and ours:
            error.filename = str(path)
        raise


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold `folder` for this process alone; UserError if another one has it.

    The lock goes with the process, however it ends; the processes it forks do not share it.
    """
    with naming(folder):
        file = (folder / ".lock").open("w")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is at work in this folder") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise  # else the disk knows no locks: its owner must take care alone
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in `folder`."""
    for temporary in folder.glob(".*.[0-9]*.tmp"):
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network disks know no such thing for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal; UserError if it is no regular file."""
    with open_regular(path, limit=1 << 40) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
