"""Processes that are killed, or whose disk fails, at a chosen moment.

Importing torch takes seconds, so one warm process (this module run as a program) forks a child for
each job: a command line, or a few states to save. In the child the functions by which Python
changes files are replaced by ones that keep a journal, and that die or fail where they were told.
"""

from __future__ import annotations

import errno
import fnmatch
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from triscale.checkpoint import State, save_state
from triscale.cli import main

KILLS = ("before", "half", "after")
SHORT = "short"  # a write that takes half of what it is given, which is no error
VANISH = "vanish"  # the folder is removed, and the call goes on


@dataclass(frozen=True)
class Fault:
    """What happens at the call number `at` (from 1) that changes a file below `folder`.

    `how` is one of KILLS: SIGKILL there; SHORT; VANISH; or the name of an error, which all later
    calls get too if it is `lasting` (except those that such a disk allows).
    """

    folder: str
    at: int = 0  # 0: nothing happens, the calls are only written down
    how: str = "before"
    lasting: bool = False
    calls: str = "*"  # only these count: a pattern for `<name> <path below the folder>`


class Outcome(NamedTuple):
    """How a job ended."""

    code: int  # of the exit; minus the signal that killed it
    seconds: float
    said: str  # stdout and stderr
    calls: list[str]  # `<name> <path below the folder>`, and `done` after each that came back


def small_state(step: int) -> State:
    """A state whose weights need several writes, and tell which step they are of."""
    tensors = {"model.a": torch.full((64, 64), float(step)), "velocity.a": torch.zeros(3)}
    return State(step, tensors, {"losses": [0.1 + 0.2, step]})


class Crasher:
    """The warm process, for the length of a `with` block."""

    def __enter__(self) -> Self:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **threads},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # it ends with its input

    def run(
        self, argv: Sequence[str], *, fault: Fault | None = None, kill_after: float | None = None
    ) -> Outcome:
        """`triscale ARGV`, killed after so many seconds if it is not done by then."""
        return self._job({"argv": list(argv)}, fault, kill_after)

    def run_here(self, argv: Sequence[str]) -> Outcome:
        """`triscale ARGV` in the warm process itself, which makes those after it faster."""
        return self._job({"argv": list(argv), "here": True}, None, None)

    def save(self, folder: Path, steps: Sequence[int], *, fault: Fault | None = None) -> Outcome:
        """Save the small states of `steps` with keep=2; an OSError is exit code 2 and told."""
        return self._job({"folder": str(folder), "steps": list(steps)}, fault, None)

    def _job(self, job: dict[str, Any], fault: Fault | None, kill_after: float | None) -> Outcome:
        told = {**job, "fault": fault and asdict(fault), "kill_after": kill_after}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return Outcome(*json.loads(self._process.stdout.readline()))


# --- in the child: a disk that fails -------------------------------------------------------------


class Disk:
    """Counts the calls that change files, and spoils the one that the fault names."""

    def __init__(self, fault: Fault, journal: int) -> None:
        self._fault, self._journal = fault, journal
        self._folder = os.path.join(os.path.realpath(fault.folder), "")
        self._count = 0
        self._paths: dict[int, str] = {}  # of open descriptors
        self._write = os.write

    def install(self) -> None:
        """Replace the functions of os and io that change files."""
        for name in ("mkdir", "unlink", "remove"):
            setattr(os, name, self._by_path(name, getattr(os, name)))
        for name in ("replace", "rename"):
            setattr(os, name, self._by_two_paths(name, getattr(os, name)))
        plain_open, plain_fsync, plain_close = os.open, os.fsync, os.close

        def os_open(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            inside = self._inside(path)
            if inside is None:
                return plain_open(path, flags, *rest, **named)
            file = self.call("open", inside, lambda: plain_open(path, flags, *rest, **named), path)
            self._paths[file] = inside
            return file

        def fsync(file: int) -> None:
            if file in self._paths:
                self.call("fsync", self._paths[file], lambda: plain_fsync(file))
            else:
                plain_fsync(file)

        def close(file: int) -> None:
            if file in self._paths:
                self.call("close", self._paths.pop(file), lambda: plain_close(file))
            else:
                plain_close(file)

        os.open, os.fsync, os.close = os_open, fsync, close
        plain = io.open

        def io_open(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            inside = self._inside(file) if set(mode) & set("wax+") else None
            if inside is None:
                return plain(file, mode, *rest, **named)
            raw = self.call(
                "open", inside, lambda: File(file, mode.strip("bt"), self, inside), file
            )
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

        io.open = io_open

    def call(
        self,
        name: str,
        path: str,
        do: Callable[[], Any],
        named: Any = None,
        *,
        half: Callable[[], Any] | None = None,
    ) -> Any:
        """Do it, unless this is the call at which something is to happen."""
        fault = self._fault
        if not fnmatch.fnmatch(f"{name} {path}", fault.calls):
            return do()
        self._note(f"{name} {path}")
        self._count += 1
        if self._count == fault.at or (fault.lasting and self._count > fault.at):
            if fault.how == SHORT:
                return (half or do)()
            if fault.how == VANISH:
                shutil.rmtree(self._folder)
            elif fault.how in KILLS:
                what = {"half": half, "after": do}.get(fault.how)
                if what:
                    with suppress(OSError):  # such as of a folder that is there already
                        what()
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                self._fail(name, do, named, half)
        result = do()
        self._note("done")
        return result

    def _fail(
        self, name: str, do: Callable[[], Any], named: Any, half: Callable[[], Any] | None
    ) -> None:
        """Raise as the system would; calls that a disk in such a state allows come back."""
        number = int(getattr(errno, self._fault.how))
        harmless = ("close", "unlink", "remove") if number == errno.ENOSPC else ("close",)
        if self._fault.lasting and name in harmless:
            return
        if name == "close":
            do()  # a close that reports an error has closed
        if half:
            half()
        raise OSError(number, os.strerror(number), *([] if named is None else [str(named)]))

    def _by_path(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def function(path: Any, *rest: Any, **named: Any) -> Any:
            inside = self._inside(path)
            if inside is None:
                return plain(path, *rest, **named)
            return self.call(name, inside, lambda: plain(path, *rest, **named), path)

        return function

    def _by_two_paths(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def function(source: Any, target: Any, **named: Any) -> Any:
            inside = self._inside(target)
            if inside is None:
                return plain(source, target, **named)
            return self.call(name, inside, lambda: plain(source, target, **named), source)

        return function

    def _inside(self, path: Any) -> str | None:
        """The path below the folder; None if it is elsewhere."""
        if not isinstance(path, str | Path):
            return None
        full = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        return full.removeprefix(self._folder) if full.startswith(self._folder) else None

    def _note(self, text: str) -> None:
        self._write(self._journal, f"{text}\n".encode())


class File(io.FileIO):
    """A file of the failing disk, opened to be written."""

    def __init__(self, path: Any, mode: str, disk: Disk, inside: str) -> None:
        super().__init__(path, mode)
        self._disk, self._inside = disk, inside

    def write(self, data: Any) -> int:
        plain = super().write
        return self._disk.call(
            "write",
            self._inside,
            lambda: plain(data),
            half=lambda: plain(memoryview(data)[: (len(data) + 1) // 2]),
        )

    def close(self) -> None:
        if not self.closed:
            self._disk.call("close", self._inside, super().close)


# --- the warm process ----------------------------------------------------------------------------


def _serve() -> None:
    importlib.import_module("triscale.runs")  # what every job needs
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(_here(job["argv"]) if "here" in job else _fork(job)), flush=True)


def _here(argv: Sequence[str]) -> Outcome:
    said, began = io.StringIO(), time.monotonic()
    with redirect_stderr(said), redirect_stdout(said):
        code = main(argv)
    return Outcome(code, time.monotonic() - began, said.getvalue(), [])


def _fork(job: dict[str, Any]) -> Outcome:
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as journal:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_child(job, said.fileno(), journal.fileno())
        wait = 300 if job["kill_after"] is None else job["kill_after"]
        ended, status = os.waitpid(child, os.WNOHANG)
        while not ended:
            if time.monotonic() >= began + wait:
                os.kill(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0)
            else:
                time.sleep(0.001)
                ended, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - began
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        texts: list[str] = []
        for file in (said, journal):
            file.seek(0)
            texts.append(file.read().decode())
    return Outcome(os.waitstatus_to_exitcode(status), seconds, texts[0], texts[1].splitlines())


def _be_child(job: dict[str, Any], said: int, journal: int) -> None:
    """Do the job, with both outputs in one file, and end."""
    os.setpgid(0, 0)  # so that its data loading processes can be ended with it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 1
    try:
        if job["fault"]:
            Disk(Fault(**job["fault"]), journal).install()
        code = main(job["argv"]) if "argv" in job else _save(Path(job["folder"]), job["steps"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _save(folder: Path, steps: Sequence[int]) -> int:
    try:
        for step in steps:
            save_state(folder, small_state(step), keep=2)
            print("saved", step, flush=True)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", flush=True)
        return 2
    return 0


if __name__ == "__main__":
    _serve()
