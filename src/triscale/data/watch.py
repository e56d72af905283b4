"""Watching the processes that load data: where each is, and what became of it.

A worker that dies, hangs or raises costs a run; what is wanted then is the picture that it was at.
Each worker writes it down before it reads, in memory that outlives it (`Places`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing import connection, process
from multiprocessing.process import BaseProcess
from types import FrameType

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from triscale.data.index import Index
from triscale.errors import UserError
from triscale.heap import set_heap
from triscale.types import Batch

TICK = 1.0  # seconds between two looks at workers that nothing comes from
_ADVICE: dict[int, str] = {
    signal.SIGKILL: "the usual reason is too little memory: try fewer --workers",
    signal.SIGBUS: "the usual reason is too little shared memory: make /dev/shm larger, or try "
    "fewer --workers",
}


class Places:
    """Which picture each process is at; workers share the rows with the process that waits."""

    def __init__(self, index: Index, workers: int) -> None:
        self._index = index
        # A row per process: its id, when it began (ns), the picture, the one it will be mixed with.
        self._rows = torch.full((max(workers, 1), 4), -1)
        if workers:
            self._rows.share_memory_()

    def enter(self, image: int) -> None:
        """This process begins to read a picture, the second one if it hasn't left the first."""
        row = self._row()
        row[:] = os.getpid(), time.monotonic_ns(), image, row[2]

    def leave(self) -> None:
        """This process is done with its pictures."""
        self._row()[2:] = -1

    def here(self) -> str:
        """The path of the picture that this process is at, and of the one mixed with it."""
        return self._name(self._row().tolist())

    def now(self) -> dict[int, tuple[float, str]]:
        """By process id: since when (a monotonic clock's seconds) it has been at which picture."""
        rows: list[list[int]] = self._rows.tolist()
        return {row[0]: (row[1] / 1e9, self._name(row)) for row in rows if row[2] >= 0}

    def _row(self) -> NDArray[np.int64]:
        worker = get_worker_info()
        return self._rows.numpy()[worker.id % len(self._rows) if worker else 0]

    def _name(self, row: list[int]) -> str:
        names = [self._index.paths[image] for image in row[2:] if image >= 0]
        return " (mixed with ".join(names) + ")" * (len(names) - 1) if names else "no picture yet"


def next_batch(
    stream: Iterator[Batch | UserError],
    crew: list[BaseProcess],
    places: Places,
    *,
    pinning: list[threading.Thread],
    timeout: float,
) -> Batch | UserError | None:
    """The next batch, None after the last, or what became of the workers.

    It is returned, not raised: the traceback would hold the stream, and so the workers.
    """
    waited, seen = 0.0, None
    while True:
        try:
            return next(stream, None)
        except (RuntimeError, OSError, EOFError) as error:
            tick = str(error).startswith("DataLoader timed out")
            if not tick:  # an end is seen a moment later than the connection that it broke
                ended = connection.wait([worker.sentinel for worker in crew], 2)
                for worker in crew:
                    if worker.sentinel in ended:  # its files are closed before it has an exit code
                        worker.join(5)
            dead = [worker for worker in crew if worker.exitcode is not None]
            if not (tick or dead):
                raise
            if not (dead or all(thread.is_alive() for thread in pinning)):
                raise RuntimeError("the thread that pins memory ended: see above why") from error
        if dead:
            return _obituary(dead, places)
        # Looks are counted, not the clock: it also runs while the whole job is suspended.
        waited += min(TICK, timeout or TICK)
        if (now := places.now()) != seen:  # slow, but getting on
            waited, seen = 0.0, now
        elif 0 < timeout <= waited:
            end(crew)  # a stuck worker wouldn't hear torch's polite request
            return _stalled(now, timeout)


def _obituary(dead: list[BaseProcess], places: Places) -> UserError:
    now, lines, advice = places.now(), list[str](), ""
    for worker in dead:
        assert worker.pid is not None
        assert worker.exitcode is not None
        number = -worker.exitcode
        how = f"killed by signal: {signal.strsignal(number)}" if number > 0 else f"exit {-number}"
        where = f" while reading {now[worker.pid][1]}" if worker.pid in now else ""
        lines.append(f"died{where} ({how})")
        advice = advice or _ADVICE.get(number, "")
    advice = advice or "if it dies there again, write that picture anew or leave it out"
    return UserError(f"a data loading process {', another '.join(lines)}; {advice}")


def _stalled(now: dict[int, tuple[float, str]], timeout: float) -> UserError:
    at = [f"at {name} for {time.monotonic() - since:.0f} s" for since, name in sorted(now.values())]
    return UserError(
        f"the data loading processes stood still for {timeout:g} s: "
        + (f"{', '.join(at)}; does the disk still answer?" if at else "none reads; try --workers 0")
    )


def end(crew: list[BaseProcess]) -> None:
    """End the workers that are left: nothing stays behind, and this process can always end."""
    for stop in (BaseProcess.terminate, BaseProcess.kill):
        left = [worker for worker in crew if worker.is_alive()]
        for worker in left:
            stop(worker)
        deadline = time.monotonic() + 1
        for worker in left:
            worker.join(max(0, deadline - time.monotonic()))
    for worker in crew:
        if worker.is_alive():  # stuck in the kernel: at exit Python would wait for it for ever
            vars(process)["_children"].discard(worker)
    crew.clear()


@contextmanager
def no_alarm(crew: list[BaseProcess]) -> Generator[None]:
    """Inside the block torch's alarm doesn't go off for the workers in `crew`.

    It raises in the main thread wherever that is, in the midst of a step or of saving, and without
    the picture's name. `next_batch` finds out by itself.
    """
    alarm = signal.getsignal(signal.SIGCHLD)
    if not callable(alarm) or threading.current_thread() is not threading.main_thread():
        yield  # torch has set none, or it can't be changed from here
        return

    def hear(number: int, frame: FrameType | None) -> None:
        try:
            alarm(number, frame)
        except RuntimeError:
            if not any(worker.exitcode for worker in crew):
                raise

    signal.signal(signal.SIGCHLD, hear)
    try:
        yield
    finally:
        main = threading.current_thread() is threading.main_thread()  # not where others collect us
        if main and signal.getsignal(signal.SIGCHLD) is hear:
            signal.signal(signal.SIGCHLD, alarm)


def start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # one thread per worker: the processes already share the cores
    # glibc keeps freed buffers in its heap, where pictures of ever other sizes leave gaps: memory
    # creeps up for hours. Large ones that are mapped instead go back to the system at once. Not
    # those of a usual picture: the system fills what it gives with zeros, a third of the work.
    set_heap(map_from=4 << 20, trim_from=32 << 20)
    # Ctrl-C, and the signals that a scheduler sends to a whole job, are the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nothing tells who sent a signal: torch's handler stays
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End when the parent says so: it does at its exit, if an error still holds the loader."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
