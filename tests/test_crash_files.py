"""Saving a state is killed, or fails, at every single call that changes a file.

What must hold comes from outside: the process says on its output what it finished.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.crashing import SHORT, Crasher, Fault, Outcome, small_state
from triscale.checkpoint import load_state, save_state
from triscale.errors import UserError

STEPS = (1, 2, 3)  # the third removes the first


@pytest.fixture(scope="module")
def calls(crasher: Crasher, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The calls of three saves that nothing disturbs."""
    run = tmp_path_factory.mktemp("undisturbed")
    whole = crasher.save(run / "last", STEPS, fault=Fault(str(run)))
    assert (whole.code, finished(whole)) == (0, 3)
    return [call for call in whole.calls if call != "done"]


def finished(outcome: Outcome) -> int:
    """The last step whose state was saved, as the process said; 0 before the first."""
    return sum(line.startswith("saved ") for line in outcome.said.splitlines())


def newest(folder: Path) -> int:
    """The step of the newest state, which must be whole; 0 if there is none."""
    if not any(folder.glob("*.json")):
        with pytest.raises(UserError, match=r"no whole state .*; start the run anew \(triscale "):
            load_state(folder)
        return 0
    state, damaged = load_state(folder)
    expected = small_state(state.step)
    assert damaged == []
    assert state.values["losses"] == expected.values["losses"]
    assert state.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(state.tensors[name], tensor)
    return state.step


def assert_goes_on(folder: Path, step: int) -> None:
    """After the state of `step` the next one can be saved, and only states are left then."""
    folder.mkdir(exist_ok=True)
    save_state(folder, small_state(step + 1), keep=2)
    assert newest(folder) == step + 1
    steps = [s for s in (step, step + 1) if s]
    wanted = {f"step-{s:08d}.{end}" for s in steps for end in ("json", "safetensors")}
    assert {path.name for path in folder.iterdir()} == wanted


def test_every_kind_of_call_is_met(calls: list[str]) -> None:
    names = {call.split()[0] for call in calls}
    assert names == {"mkdir", "open", "write", "fsync", "close", "replace", "unlink"}
    assert len(calls) > 20 * len(STEPS)


@pytest.mark.parametrize("how", ["before", "half", "after"])
def test_killed_at_any_call(how: str, crasher: Crasher, calls: list[str], tmp_path: Path) -> None:
    for at, call in enumerate(calls, start=1):
        if how == "half" and not call.startswith("write "):
            continue
        run = tmp_path / str(at)
        run.mkdir()
        outcome = crasher.save(run / "last", STEPS, fault=Fault(str(run), at=at, how=how))
        assert outcome.code == -signal.SIGKILL
        before = finished(outcome)
        step = newest(run / "last")
        assert before <= step <= before + 1, f"killed {how} {call}"
        assert_goes_on(run / "last", step)


@pytest.mark.parametrize(
    ("name", "lasting"),
    [
        ("ENOSPC", False),
        ("EIO", False),
        ("EROFS", False),
        ("EACCES", False),
        ("ENOSPC", True),
        ("EROFS", True),
    ],
)
def test_any_call_fails(
    name: str, lasting: bool, crasher: Crasher, calls: list[str], tmp_path: Path
) -> None:
    for at, call in enumerate(calls, start=1):
        run = tmp_path / str(at)
        run.mkdir()
        fault = Fault(str(run), at=at, how=name, lasting=lasting)
        outcome = crasher.save(run / "last", STEPS, fault=fault)
        before, what = finished(outcome), f"{name} at {call}: {outcome.said}"
        step = newest(run / "last")
        assert before <= step <= before + 1, what
        if outcome.code == 0:
            # a folder that is there needn't be made; a disk that is full, or can't be written any
            # more, allows to close, and the first to remove
            assert call.split()[0] in ("mkdir", *(("unlink", "close") if lasting else ())), what
            assert before == len(STEPS), what
            continue
        assert outcome.code == 2, what
        path, _, reason = outcome.said.splitlines()[-1].rpartition(": ")
        assert reason == os.strerror(getattr(errno, name)), what
        told = Path(path).relative_to(run).as_posix()
        assert told.startswith("last"), what
        assert not told.endswith(".tmp"), what
        if name != "EROFS" or not lasting:  # there nothing can be removed any more
            assert not list(run.rglob(".*")), what
        assert_goes_on(run / "last", step)


def test_short_writes_are_written_on(crasher: Crasher, calls: list[str], tmp_path: Path) -> None:
    for at, call in enumerate(calls, start=1):
        if call.startswith("write "):
            run = tmp_path / str(at)
            run.mkdir()
            fault = Fault(str(run), at=at, how=SHORT)
            assert crasher.save(run / "last", STEPS, fault=fault).code == 0
            assert newest(run / "last") == len(STEPS)
