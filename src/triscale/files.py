"""Files that are either the old one or the new one, never half of each."""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

from triscale.errors import UserError

# all that zipfile raises for a file that is no zip, a truncated, an encrypted or a damaged one
ZIP_ERRORS = (BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: written beside it, flushed to disk, renamed."""
    replace_atomically(path, lambda temporary: temporary.write_bytes(data))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write` puts into the temporary path it is given.

    A crash at any moment leaves the old file (or none) or the whole new one. Raises OSError; the
    temporary file is removed then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    except OSError as error:
        # a full disk does not say what was written, others name what nobody knows
        if error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)  # the rename itself


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold `folder` for this process alone; UserError if another one has it.

    The lock goes with the process, however it ends; the processes it forks do not share it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is at work in this folder") from error
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
