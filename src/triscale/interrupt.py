"""Ctrl-C, SIGTERM and SIGUSR1 as a request: the loop finishes its step, saves, and leaves.

SIGUSR1 is what Slurm sends some time before the end of a job that asks for it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# One request may come twice: Ctrl-C and a cluster's SIGTERM reach every process of a job, and
# torchrun, which is one of them, passes them on.
_ECHO = 1.0  # seconds
# Once it is granted there may be more: a launcher ends all when one process has left.
_FAREWELL = 5.0  # seconds


class Interrupted(KeyboardInterrupt):
    """Raised once everything is saved; the message says how to go on."""


@contextmanager
def stop_requests() -> Generator[Callable[[], bool]]:
    """Inside the block the first signal makes the yielded function true; one that comes more than
    a second later ends the process at once. After a block that Interrupted ends, the process has
    five seconds to leave undisturbed."""
    asked_at: float | None = None
    granted_at: float | None = None

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if granted_at is not None:
            if now - granted_at > _FAREWELL:
                signal.signal(number, before[signal.Signals(number)])
                signal.raise_signal(number)
        elif asked_at is None:
            asked_at = now
        elif now - asked_at > _ECHO:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread only
        return
    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield lambda: asked_at is not None
    except Interrupted:
        granted_at = time.monotonic()
        raise
    finally:
        if granted_at is None:
            _set(before)


@contextmanager
def leaving_at_once() -> Generator[None]:
    """Inside the block SIGTERM and SIGUSR1 raise Interrupted, until `stop_requests` takes over: a
    job that is restarted may be asked to stop before it has begun."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted("stopped before the training began; the same command starts it again")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, leave) for s in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    except Interrupted:
        raise  # the process ends, and nothing shall come between
    except BaseException:
        _set(before)
        raise
    else:
        _set(before)


def leave_undisturbed() -> None:
    """From here to the end of the process, also while Python shuts down, signals change nothing."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _set(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
