"""Ctrl-C, SIGTERM and SIGUSR1 as a request: the loop finishes its step, saves, and leaves.

SIGUSR1 is what Slurm sends some time before the end of a job that asks for it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """Raised once everything is saved; the message says how to go on."""


@contextmanager
def stop_requests() -> Generator[Callable[[], bool]]:
    """Inside the block the first signal makes the yielded function true, the second one kills."""
    asked = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread only
        return
    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
