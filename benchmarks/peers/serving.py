"""The pipe between a benchmark and a peer: one JSON object a line, in and out.

What the peer's libraries print goes to stderr, so that it can't be taken for an answer.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def serve(tasks: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer requests with what the named task returns, until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        words = json.loads(line)
        name = words.pop("task")
        try:
            answer = tasks[name](**words)
        except Exception as error:  # whatever it is, the one who asked decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def looped(
    work: Callable[[int], object], *, seconds: float = 0.0, count: int = 1, group: int = 1
) -> dict[str, Any]:
    """Call `work` with 0, 1, .. at least `count` times and `seconds`; times per unit.

    A call does `group` units. Call 0 isn't timed.
    """
    work(0)
    done, start, cpu = 0, time.perf_counter(), time.process_time()
    while done < count or time.perf_counter() - start < seconds:
        done += 1
        work(done)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    units = done * group
    return {"seconds": wall / units, "cpu_seconds": cpu / units, "count": units}


@contextmanager
def watched_memory(every: float = 0.5) -> Generator[list[float]]:
    """MB of this process and all below it, looked at again and again by a thread.

    PSS: a page that several processes share is counted once, split between them.
    """
    series: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(every):
            series.append(round(sum(map(_pss, _tree(os.getpid()))) / 1e6, 1))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield series
    finally:
        over.set()
        thread.join()


def forget_peak() -> None:
    """Let the peak of the resident memory begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The peak of the resident memory of this process since `forget_peak`, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) * 1024 / 1e6, 1)


def _tree(pid: int) -> list[int]:
    """`pid` and the processes below it; one that has ended in between is left out."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = children.read_text().split()
        except OSError:
            continue
        found += [each for child in below for each in _tree(int(child))]
    return found


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
