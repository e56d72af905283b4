"""Runs on several processes for the tests: joined by hand, or started by torchrun."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.multiprocessing import get_context

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
TRAIN = ("-m", "triscale", "train")
PATIENCE = 120.0  # seconds, on a machine with other work


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def join(rank: int, world_size: int, *, port: int) -> None:
    """Set what torchrun would set."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def side_by_side(target: Callable[..., None], count: int, *arguments: object) -> list[int | None]:
    """Call `target(rank, *arguments)` in new processes; their exit codes."""
    context = get_context("spawn")
    group = [context.Process(target=target, args=(rank, *arguments)) for rank in range(count)]
    for process in group:
        process.start()
    for process in group:
        process.join(PATIENCE)
        process.kill()
        process.join()
    return [process.exitcode for process in group]


class Launched:
    """A command in a session of its own, and what it said."""

    def __init__(
        self, command: Sequence[str], output: Path, *, env: Mapping[str, str] | None = None
    ) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
                start_new_session=True,
            )

    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def finish(self) -> tuple[int, str]:
        """Its exit code and all it said."""
        return self.process.wait(PATIENCE), self.said()


@contextmanager
def launched(
    command: Sequence[str], output: Path, *, env: Mapping[str, str] | None = None
) -> Generator[Launched]:
    """A started command; all that came of it is gone after the block."""
    running = Launched(command, output, env=env)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            for number in [*descendants(running.process.pid), running.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            running.process.wait()


def descendants(parent: int) -> list[int]:
    """The processes that a process has started, and theirs; torchrun gives them new sessions."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return []
    return [n for child in map(int, children) for n in (child, *descendants(child))]


def processes_with(word: str) -> list[tuple[int, str]]:
    """Process id and rank of each living training process that has a word on its command line."""
    found: list[tuple[int, str]] = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if word not in words:
                continue
            pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        ranks = [pair.removeprefix("RANK=") for pair in pairs if pair.startswith("RANK=")]
        if ranks:
            found.append((int(folder.name), ranks[0]))
    return sorted(found, key=lambda pair: pair[1])
