"""Workers that die, hang or raise: one error that names the picture, and nothing left behind.

Expected values from outside our code: the kernel says who is killed and who is left.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.data.tiny import noise, write_index
from triscale.data.augment import AugmentConfig
from triscale.data.index import Index
from triscale.data.loader import make_loader
from triscale.errors import UserError
from triscale.types import Batch, Draw

STUCK = 5  # the picture of `index` that its disk never delivers
STRANGERS = set[int]()  # see `strangers`

pytestmark = [
    # On a machine with fewer cores than workers torch advises against it.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # The thread that feeds a dead worker's queue may complain.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


@pytest.fixture(scope="module", autouse=True)
def strangers() -> Iterator[None]:
    """Processes that other tests keep for the whole session are none of ours."""
    STRANGERS.update(children())
    yield
    STRANGERS.clear()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a process, or a handler of signals."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    assert children() == []
    after = signal.getsignal(signal.SIGCHLD)
    assert after is before or after.__module__.startswith("torch.")  # it stays, once set


class StuckPaths(list[str]):
    """A worker that asks for the last path waits, as for a disk that doesn't answer: it opens a
    pipe that nobody writes to."""

    def __getitem__(self, index: int) -> str:
        path = super().__getitem__(index)
        if index == STUCK and multiprocessing.parent_process():
            Path(path).read_bytes()
        return path


def write_stuck(folder: Path) -> Index:
    """Six pictures, the last one a pipe."""
    index = write_index(folder, [noise(32, 32, seed=i) for i in range(6)], [[]] * 6)
    os.unlink(index.paths[STUCK])
    os.mkfifo(index.paths[STUCK])
    return replace(index, paths=StuckPaths(index.paths))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Six pictures; a worker that comes to the last one waits."""
    yield write_stuck(tmp_path)
    for name in os.listdir("/proc/self/fd"):  # what at_the_pipe has opened
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == str(tmp_path / f"{STUCK}.png"):
                os.close(int(name))


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    """How processes are started."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def children(process: int | str = "self") -> list[int]:
    """The processes that load data for this one, zombies included."""
    found, pids = list[int](), list[int]()
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has just ended
            pids += map(int, (thread / "children").read_text().split())
    for pid in pids:
        with suppress(FileNotFoundError):
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if process == "self" and "multiprocessing.forkserver" in command:
                found += children(pid)  # Python's server stays, and starts the others
            elif "multiprocessing.resource_tracker" not in command:
                found.append(pid)
    return [pid for pid in found if pid not in STRANGERS]


def loader(index: Index, *images: int, workers: int = 1, timeout: float = 60) -> Iterator[Batch]:
    draws = [[Draw(image, (32, 32), 0, augment=False)] for image in images]
    return make_loader(index, draws, config=AugmentConfig(), workers=workers, timeout=timeout)


def at_the_pipe(index: Index) -> int:
    """The worker, once it has opened the pipe; it then waits for what is never written."""
    for _ in range(1000):
        time.sleep(0.01)
        with suppress(OSError):  # the kernel refuses as long as nobody reads
            os.open(index.paths[STUCK], os.O_WRONLY | os.O_NONBLOCK)  # open until the test ends
            break
    for _ in range(100):
        for child in children():
            if index.paths[STUCK] in open_files(child):
                return child
        time.sleep(0.01)
    raise AssertionError("nobody reads")


def open_files(pid: int) -> list[str]:
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]


# --- death ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, r"\(killed by signal: Killed\); .*too little memory: .* fewer --workers"),
        (signal.SIGBUS, r"\(killed by signal: Bus error\); .*make /dev/shm larger"),
        (signal.SIGSEGV, r"\(killed by signal: Segmentation fault\); .*write that picture anew"),
    ],
)
def test_death_in_the_midst_of_a_picture_names_it(
    index: Index, number: signal.Signals, message: str
) -> None:
    batches = loader(index, 0, 1, STUCK, 2, workers=2)
    assert next(batches).image_ids.tolist() == [0]
    murder = threading.Thread(target=lambda: os.kill(at_the_pipe(index), number))
    murder.start()
    with pytest.raises(UserError) as caught:
        list(batches)
    murder.join()
    expected = f"^a data loading process died while reading {index.paths[STUCK]} {message}"
    assert re.search(expected, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_death_is_told_when_a_batch_is_asked_for(index: Index, method: str) -> None:
    """Not in the midst of a step, where torch's own alarm raises."""
    batches = loader(index, 0, 1, STUCK)
    next(batches)
    os.kill(at_the_pipe(index), signal.SIGKILL)
    time.sleep(0.3)  # the step
    subprocess.run(["true"], check=True)  # and another child's end
    with pytest.raises(UserError, match=rf"died while reading {index.paths[STUCK]} \(killed by"):
        next(batches)


def test_death_between_two_pictures(index: Index) -> None:
    batches = loader(index, *[0] * 9)
    next(batches)
    time.sleep(0.3)  # it has read ahead what it may
    [pid] = children()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"^a data loading process died \(killed by signal: Killed"):
        list(batches)


def test_death_of_an_outer_loaders_worker_is_told_by_that_loader(index: Index) -> None:
    """As in a validation between two steps of training."""
    outer = loader(index, 0, STUCK)
    next(outer)
    pid = at_the_pipe(index)
    inner = loader(index, 1, 2, 3, 4)
    next(inner)
    os.kill(pid, signal.SIGKILL)
    assert [batch.image_ids.item() for batch in inner] == [2, 3, 4]
    with pytest.raises(UserError, match=f"died while reading {index.paths[STUCK]} "):
        next(outer)


def test_death_in_a_thread_that_hears_no_signals(index: Index) -> None:
    errors: list[str] = []

    def run() -> None:
        try:
            list(loader(index, STUCK))
        except UserError as error:
            errors.append(str(error))

    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's alarm, if one was set before
    try:
        thread = threading.Thread(target=run)
        thread.start()
        os.kill(at_the_pipe(index), signal.SIGKILL)
        thread.join()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert f"died while reading {index.paths[STUCK]} " in errors[0]


# --- standstill ----------------------------------------------------------------------------------


def test_standstill_names_the_pictures(index: Index) -> None:
    batches = loader(index, 0, STUCK, STUCK, 1, workers=2, timeout=1)
    next(batches)
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        next(batches)
    assert 0.9 < time.monotonic() - began < 5  # ending the workers takes no time
    path = index.paths[STUCK]
    found = re.fullmatch(
        r"the data loading processes stood still for 1 s: "
        rf"at {path} for (\d+) s, at {path} for (\d+) s; does the disk still answer\?",
        str(caught.value),
    )
    assert found, caught.value
    first, second = map(int, found.groups())
    assert 1 <= second <= first < 20


def test_a_slow_worker_is_not_stuck(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture takes less than the time allowed, the batch more."""
    monkeypatch.setattr("triscale.data.loader.read_picture", slowly)
    draws = [[Draw(image, (32, 32), 0, augment=False) for image in (0, 1, 2, 3)]]
    batches = make_loader(index, draws, config=AugmentConfig(), workers=1, timeout=2)
    assert next(batches).image_ids.tolist() == [0, 1, 2, 3]
    batches.close()


def slowly(path: Path, *, reduction: int) -> NDArray[np.uint8]:
    time.sleep(0.9)
    return noise(32, 32)


def test_a_pinning_thread_that_ends_is_no_standstill(index: Index) -> None:
    """Batches don't come through without it. Stands in for torch's, which needs a device."""
    thread = threading.Thread(target=time.sleep, args=(0.5,), name="Thread-1 (_pin_memory_loop)")
    thread.start()
    with pytest.raises(RuntimeError, match="the thread that pins memory ended"):
        list(loader(index, STUCK))


def test_timeout_0_waits(index: Index) -> None:
    batches = loader(index, 0, STUCK, timeout=0)
    next(batches)
    pipe = os.open(index.paths[STUCK], os.O_RDWR)  # keeps the reader waiting
    release = threading.Timer(2.5, lambda: os.close(pipe))
    release.start()
    with pytest.raises(UserError, match=f"^{index.paths[STUCK]}: "):
        next(batches)
    release.join()


def test_a_loader_with_a_stuck_worker_can_be_left(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # torch's patience
    batches = loader(index, 0, STUCK)
    next(batches)
    at_the_pipe(index)
    batches.close()
    assert children() == []


UNKILLABLE = """
import multiprocessing.popen_fork, sys, torch
from pathlib import Path
from tests.data.test_loader_failures import STUCK, loader, write_stuck

multiprocessing.set_start_method("fork")
# As with a process that the kernel itself keeps waiting: no signal reaches it.
multiprocessing.popen_fork.Popen._send_signal = lambda self, number: None
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2  # how long torch waits for it
try:
    list(loader(write_stuck(Path(sys.argv[1])), STUCK, timeout=0.5))
except ValueError as error:
    print(error, flush=True)
    sys.exit(7)
"""


def test_a_worker_that_cannot_be_ended_lets_its_parent_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", UNKILLABLE, str(tmp_path)]
    began = time.monotonic()
    with (tmp_path / "out").open("w") as out:  # a pipe would wait for the worker, which holds it
        run = subprocess.run(command, stdout=out, stderr=out, timeout=60, check=False)
    text = (tmp_path / "out").read_text()
    assert run.returncode == 7, text
    assert "stood still" in text
    assert time.monotonic() - began < 30
    os.close(os.open(tmp_path / "5.png", os.O_WRONLY))  # the worker reads an end, and ends


# --- exceptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory ran out; try fewer --workers"),
        (OSError(errno.EIO, "Input/output error"), r"can't be used \(\[Errno 5\] Input/output"),
        (cv2.error("a\n  b"), r"can't be used \(a b\)"),
    ],
)
def test_a_picture_that_raises_is_named(
    index: Index, error: Exception, message: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *, reduction: int) -> NDArray[np.uint8]:
        if path.stem == "3":
            raise error
        return noise(32, 32)

    monkeypatch.setattr("triscale.data.loader.read_picture", fail)
    batches = loader(index, 1, 2, 3, workers=workers)
    assert [next(batches).image_ids.item() for _ in range(2)] == [1, 2]
    with pytest.raises(UserError, match=f"^{index.paths[3]}: {message}"):
        next(batches)
    mixed = [[Draw(1, (32, 32), 0, partner=3, ratio=0.5)]]
    batches = make_loader(index, mixed, config=AugmentConfig(), workers=workers)
    expected = rf"^{index.paths[3]} \(mixed with {index.paths[1]}\): {message}"
    with pytest.raises(UserError, match=expected):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("bug", [RuntimeError("no"), ZeroDivisionError("no"), KeyError("no")])
def test_a_bug_keeps_its_traceback_and_names_the_picture(
    index: Index, bug: Exception, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *, reduction: int) -> NDArray[np.uint8]:
        raise bug

    monkeypatch.setattr("triscale.data.loader.read_picture", fail)
    with pytest.raises(type(bug), match="no") as caught:
        list(loader(index, 1, 2, workers=workers))
    text = "".join(traceback.format_exception(caught.value))
    assert f"while reading {index.paths[1]}" in text
    assert "in fail" in text


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_that_runs_out_for_a_batch(
    index: Index, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arrays: object) -> None:
        raise np._core._exceptions._ArrayMemoryError((10**12,), np.dtype("f8"))

    monkeypatch.setattr("triscale.data.loader.stack", fail)
    with pytest.raises(UserError, match="memory ran out for a batch of 1 pictures; try a smaller"):
        list(loader(index, 1, workers=workers))
