"""A run that is killed, or whose disk fails, at any moment ends as if nothing had happened."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.crashing import KILLS, VANISH, Crasher, Fault, Outcome
from tests.running import assert_same_run, begin, same_tensors
from triscale.checkpoint import has_state, load_state

NUMBER = int(os.environ.get("TRISCALE_KILLS", "32"))  # of kills at random moments


def newest(run: Path) -> int:
    """The step of the newest state, which must be whole; 0 if there is none."""
    if not has_state(run):
        return 0
    state, damaged = load_state(run / "last")
    assert not damaged
    return state.step


def go_on(devkit: Path, run: Path) -> list[str]:
    """What a person would type after a crash."""
    return ["train", "--resume", str(run)] if has_state(run) else begin(devkit, run)


def assert_as_whole(run: Path, whole: Path) -> None:
    """To the bit, with nothing missing and nothing left over but states that were put aside."""
    assert_same_run(run, whole)
    names = {path.relative_to(whole) for path in whole.rglob("*")}
    found = {path.relative_to(run) for path in run.rglob("*")}
    assert {path for path in found if not path.name.startswith("damaged-step-")} == names
    for path in whole.glob("epoch_*"):
        assert same_tensors(run / path.name, path)


def error_of(outcome: Outcome) -> str:
    """The one line that a failed command ends with."""
    assert outcome.code == 2, outcome.said
    assert "Traceback" not in outcome.said
    lines = outcome.said.splitlines()
    assert sum(line.startswith("triscale: ") for line in lines) == 1, outcome.said
    assert lines[-1].startswith("triscale: error: "), outcome.said
    return lines[-1]


# --- killed --------------------------------------------------------------------------------------


def phase(calls: list[str]) -> str:
    """Where in the writing of its files a process was when it was killed."""
    if not calls:
        return "before the first file"
    last = calls[-2] if calls[-1] == "done" else calls[-1]
    name, path = re.sub(r"\d+", "#", last).split(maxsplit=1)
    path = re.sub(r"\.#\.tmp", "", path)
    return f"{'between: after' if calls[-1] == 'done' else 'within:'} {name} {path}"


def test_killed_at_random_moments(
    crasher: Crasher, devkit: Path, whole: Path, tmp_path: Path
) -> None:
    """Chains of kills and resumes, half of the kills by the clock and half by the calls."""
    rng = random.Random(NUMBER)
    first = tmp_path / "first"
    undisturbed = crasher.run(begin(devkit, first), fault=Fault(str(first)))
    assert undisturbed.code == 0
    assert_as_whole(first, whole)
    calls = len([call for call in undisturbed.calls if call != "done"])
    steps = newest(whole)
    kills, chain = 0, 0
    where: Counter[str] = Counter()
    while kills < NUMBER:
        chain += 1
        run, code, saved = tmp_path / str(chain), -1, 0
        while code:
            left = 1 - 0.6 * saved / steps  # of the run, roughly, and of its start
            at, after = 0, None
            if kills < NUMBER and rng.random() < 0.5:
                at = rng.randint(1, 1 + round(left * calls))
            elif kills < NUMBER:
                after = rng.uniform(0, left * undisturbed.seconds)
            fault = Fault(str(run), at=at, how=rng.choice(KILLS))
            words = [*go_on(devkit, run), "--workers", str(chain % 2)]
            outcome = crasher.run(words, fault=fault, kill_after=after)
            code = outcome.code
            if code:
                assert code == -signal.SIGKILL, outcome.said
                kills += 1
                where[phase(outcome.calls)] += 1
            before, saved = saved, newest(run)
            assert saved >= before, "a kill loses no state"
        assert_as_whole(run, whole)
        shutil.rmtree(run)
    print(f"{kills} kills in {chain} chains")
    print("\n".join(f"{number:4} {name}" for name, number in sorted(where.items())))


@pytest.mark.parametrize(
    "calls",
    [
        "* .recipe.toml.*",  # nothing is there yet
        "* last/.step-*.safetensors.*",  # nothing to resume yet
        "* last/.step-*.json.*",  # half a state
    ],
)
def test_killed_before_anything_was_saved(
    calls: str, crasher: Crasher, devkit: Path, whole: Path, tmp_path: Path
) -> None:
    """To go on isn't possible and says what is; to start in the same folder is."""
    run = tmp_path / "run"
    fault = Fault(str(run), at=1, how="after", calls=calls)
    assert crasher.run(begin(devkit, run), fault=fault).code == -signal.SIGKILL
    assert not has_state(run)
    line = error_of(crasher.run(["train", "--resume", str(run)]))
    assert f"start the run anew (triscale train DATA --out {run})" in line
    assert crasher.run(begin(devkit, run)).code == 0
    assert_as_whole(run, whole)


@pytest.mark.parametrize(
    "calls",
    ["replace best.safetensors", "replace best_map.log", "replace predictions/*", "replace epoch*"],
)
def test_killed_after_an_epoch(
    calls: str, crasher: Crasher, devkit: Path, whole: Path, tmp_path: Path
) -> None:
    """With no state before the one that is due at the end of the epoch."""
    run = tmp_path / "run"
    words = begin(devkit, run, "checkpoint.every_steps=0")
    fault = Fault(str(run), at=1, how="after", calls=calls)
    assert crasher.run(words, fault=fault).code == -signal.SIGKILL
    outcome = crasher.run(go_on(devkit, run) if has_state(run) else words)
    assert outcome.code == 0, outcome.said
    assert_same_run(run, whole)


# --- a disk that fails ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "at", "name", "told"),
    [
        ("open .lock", 1, "EROFS", ""),  # the folder: nobody knows the lock's name
        ("write .recipe.toml.*", 1, "ENOSPC", "recipe.toml"),
        ("write log.jsonl", 1, "ENOSPC", "log.jsonl"),
        ("write log.jsonl", 4, "ENOSPC", "log.jsonl"),
        ("mkdir last", 1, "ENOSPC", "last"),
        ("write last/.step-00000001.s*", 1, "ENOSPC", "last/step-00000001.safetensors"),
        ("write last/.step-00000003.s*", 2, "ENOSPC", "last/step-00000003.safetensors"),
        ("write last/.step-00000003.j*", 1, "ENOSPC", "last/step-00000003.json"),
        ("unlink last/step-00000001.s*", 1, "EIO", "last/step-00000001.safetensors"),
        ("write .best.safetensors.*", 2, "ENOSPC", "best.safetensors"),
        ("fsync .best_map.log.*", 1, "EIO", "best_map.log"),
        ("write .epoch_0000*", 1, "ENOSPC", "epoch_0000"),
        ("write predictions/*", 2, "ENOSPC", "predictions/"),
    ],
)
def test_a_call_fails(
    calls: str,
    at: int,
    name: str,
    told: str,
    crasher: Crasher,
    devkit: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    """One line with the file and the reason; when that is gone, the run goes on."""
    run = tmp_path / "run"
    fault = Fault(str(run), at=at, how=name, lasting=name == "ENOSPC", calls=calls)
    line = error_of(crasher.run(begin(devkit, run), fault=fault))
    assert f"{run / told}" in line
    assert line.endswith(os.strerror(getattr(errno, name)))
    assert not list(run.rglob("*.tmp"))
    outcome = crasher.run(go_on(devkit, run))
    assert outcome.code == 0, outcome.said
    assert_as_whole(run, whole)


@pytest.mark.parametrize("at", [1, 25, 60, 150])
def test_a_disk_becomes_read_only(
    at: int, crasher: Crasher, devkit: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fault = Fault(str(run), at=at, how="EROFS", lasting=True)
    line = error_of(crasher.run(begin(devkit, run), fault=fault))
    assert line.startswith(f"triscale: error: {run}")
    assert line.endswith(": Read-only file system")
    assert ".tmp" not in line
    assert crasher.run(go_on(devkit, run)).code == 0
    assert_as_whole(run, whole)


@pytest.mark.parametrize(
    "calls", ["write log.jsonl", "mkdir last", "fsync last", "open predictions*"]
)
def test_the_folder_is_deleted(calls: str, crasher: Crasher, devkit: Path, tmp_path: Path) -> None:
    """It isn't made again: what would be in it is no run."""
    run = tmp_path / "run"
    fault = Fault(str(run), at=2, how=VANISH, calls=calls)
    line = error_of(crasher.run(begin(devkit, run), fault=fault))
    assert line.startswith(f"triscale: error: {run}")
    assert line.endswith(": No such file or directory")
    assert not run.exists()
