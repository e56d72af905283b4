"""A damaged file of a run folder: the run goes on to the same end, or one line says what is wrong.

That any single bit of a state may flip is tested in test_checkpoint.py, without training.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crashing import Crasher, Fault
from tests.running import begin
from tests.test_crash import assert_as_whole, error_of
from triscale.checkpoint import load_state
from triscale.errors import UserError

Damage = Callable[[Path], object]
NEWEST, OLDER = "last/step-00000004", "last/step-00000003"  # of the run that is damaged


@pytest.fixture(scope="module")
def halted(crasher: Crasher, devkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed before it saved its last state; its best weights are of epoch 0."""
    run = tmp_path_factory.mktemp("halted") / "run"
    fault = Fault(str(run), at=1, calls="open last/.step-00000005.*")
    assert crasher.run(begin(devkit, run), fault=fault).code == -signal.SIGKILL
    return run


def empty(path: Path) -> None:
    path.unlink()  # not opened for writing: the copy shares its content
    path.touch()


def half(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def flip(part: float, *, bit: int = 0) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(part * len(content))] ^= 1 << bit
        path.unlink()
        path.write_bytes(content)

    return damage


def gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_rate(path: Path) -> None:
    """A flipped bit in a digit leaves valid TOML."""
    text = path.read_text()
    path.write_text(re.sub(r"^lr = 0\.0", "lr = 0.1", text, count=1, flags=re.MULTILINE))
    assert path.read_text() != text


def copied(halted: Path, into: Path) -> Path:
    def copy(source: str, target: str) -> None:
        large = source.endswith(".safetensors")
        os.link(source, target) if large else shutil.copy2(source, target)

    return Path(shutil.copytree(halted, into, copy_function=copy))


def newest_whole(run: Path) -> int:
    try:
        return load_state(run / "last")[0].step
    except UserError:
        return 0


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (f"{NEWEST}.safetensors", empty),
        (f"{NEWEST}.safetensors", half),
        (f"{NEWEST}.safetensors", flip(0.5)),
        (f"{NEWEST}.safetensors", gone),
        (f"{NEWEST}.safetensors", folder),
        (f"{NEWEST}.json", empty),
        (f"{NEWEST}.json", flip(0.5)),
        (f"{NEWEST}.json", flip(0.5, bit=7)),
        (f"{NEWEST}.json", gone),
        (f"{NEWEST}.json", folder),
        (f"{OLDER}.safetensors", gone),
        (f"{OLDER}.json", flip(0.1)),
        ("last", gone),
        ("recipe.toml", empty),
        ("recipe.toml", half),
        ("recipe.toml", flip(0, bit=7)),
        ("recipe.toml", gone),
        (".lock", gone),
        (".lock", folder),
        ("log.jsonl", folder),
        ("predictions", gone),
        ("recipe.toml", other_rate),
        ("best.safetensors", flip(0.5)),
        ("best.safetensors", gone),
        ("best_map.log", half),
        ("best_map.log", gone),
        ("log.jsonl", half),
        ("log.jsonl", flip(0.5)),
        ("log.jsonl", flip(0.3, bit=7)),
        ("log.jsonl", gone),
    ],
)
def test_same_end_or_one_line(
    file: str, damage: Damage, crasher: Crasher, halted: Path, whole: Path, tmp_path: Path
) -> None:
    run = copied(halted, tmp_path / "run")
    damage(run / file)
    step = newest_whole(run)
    kept = {p: p.read_bytes() for p in run.glob("*") if p.is_file() and p.name != "log.jsonl"}
    outcome = crasher.run(["train", "--resume", str(run)])
    if outcome.code == 0:
        assert_as_whole(run, whole)
    else:
        assert str(run) in error_of(outcome) or file == "recipe.toml"
        assert newest_whole(run) >= step, "what was whole is lost"
        assert kept == {path: path.read_bytes() for path in kept}
