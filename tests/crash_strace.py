"""Kill a process at each system call by which it saves states: `python -m tests.crash_strace`.

The same as test_crash_files.py with the kernel's own calls instead of Python's; it needs Linux,
strace and the right to trace. A child that has imported everything waits until strace is attached,
which kills it on entering the n-th call of one kind; that is done for every n of every kind.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.crashing import small_state
from tests.test_crash_files import STEPS, assert_goes_on, newest
from triscale.checkpoint import save_state

CALLS = ("openat", "read", "write", "fsync", "close", "rename", "unlink", "mkdir", "newfstatat")


def save_under_strace(folder: Path, log: Path, *options: str) -> tuple[int, int]:
    """Save the small states in a traced child; its exit status and the last step finished."""
    done = mmap.mmap(-1, 1)  # shared memory: telling how far we are needs no system call
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        for step in STEPS:
            save_state(folder, small_state(step), keep=2)
            done[0] = step
        os._exit(0)
    trace = f"trace={','.join(CALLS)}"
    command = ["strace", "-o", str(log), "-e", trace, *options, "-p", str(child)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
        assert tracer.poll() is None, "strace can't attach"
        time.sleep(0.001)
    time.sleep(0.02)  # between attaching and stopping it
    os.write(writer, b"x")
    _, status = os.waitpid(child, 0)
    tracer.communicate()
    os.close(reader)
    os.close(writer)
    return os.waitstatus_to_exitcode(status), done[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        log = root / "strace.log"
        (root / "whole").mkdir()
        save_state(root / "whole" / "last", small_state(0), keep=2)  # loads what is loaded late
        (root / "first").mkdir()
        assert save_under_strace(root / "first" / "last", log) == (0, STEPS[-1])
        lines = log.read_text().splitlines()
        counts = Counter(line.split("(")[0] for line in lines if line.split("(")[0] in CALLS)
        print("system calls:", ", ".join(f"{call} {n}" for call, n in counts.items()))
        print(f"{len(STEPS)} saves, {counts.total()} system calls, each a kill point")
        survivors: Counter[int] = Counter()
        for call, number in counts.items():
            for n in range(1, number + 1):
                run = root / f"{call}-{n}"
                run.mkdir()
                inject = f"inject={call}:signal=KILL:when={n}"
                code, finished = save_under_strace(run / "last", log, "-e", inject)
                assert code == -signal.SIGKILL, f"not killed at {call} {n}"
                step = newest(run / "last")
                assert finished <= step <= finished + 1, f"{call} {n}: {finished}, found {step}"
                assert_goes_on(run / "last", step)
                survivors[step] += 1
        print("newest whole state after the kill:", dict(sorted(survivors.items())))


if __name__ == "__main__":
    main()
