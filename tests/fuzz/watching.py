"""What may come of reading any file: an answer or a UserError, in bounded time and memory."""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

from triscale.errors import UserError

SECONDS = 5.0  # for one input; what is tried takes milliseconds
MEGABYTES = 200


class HangError(BaseException):
    """Not an Exception: nobody shall catch it on the way."""


def peak_memory(read: Callable[[Path], object], name: str, content: bytes) -> int:
    """The most bytes that reading a file of this name and content takes, or refusing it; any
    exception but UserError goes on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        tracemalloc.start()
        try:
            with contextlib.suppress(UserError):
                read(path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@contextlib.contextmanager
def watched(*, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Generator[None]:
    """A block whose warnings are errors, and that ends in time and without much more memory."""
    before = _peak()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    # so that what takes all memory there is ends with a MemoryError
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + (4 * megabytes << 20), limits[1]))
    previous = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # for what no exception ends: a thread, or C code
    faulthandler.dump_traceback_later(6 * seconds, exit=True, file=sys.__stderr__)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    grown = _peak() - before
    assert grown < megabytes, f"the memory grew by {grown} MB"


def _stop(*_: object) -> None:
    raise HangError("not done in time")


def _peak() -> int:
    """The most memory that this process has had, all libraries together, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _mapped() -> int:
    """Bytes of this process's address space (proc(5): the first number of statm, in pages)."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
