"""The log file, the meters and what a person sees."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triscale import log
from triscale.errors import UserError
from triscale.log import Meter, Narrator, RunLog


def test_meter_is_a_true_mean_since_the_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "perf_counter", lambda: now[0])
    meter = Meter()
    assert meter.images_per_second() == 0
    for _ in range(3):
        now[0] += 2.0
        meter.add(images=8, data_seconds=0.25)
    assert meter.images_per_second() == 4.0  # 24 pictures in 6 seconds
    assert (meter.steps, meter.data_seconds) == (3, 0.75)
    meter.reset()
    now[0] += 1.0
    meter.add(images=8, data_seconds=0.0)
    assert meter.images_per_second() == 8.0
    assert meter.data_seconds == 0.0


def test_meter_takes_the_mean_of_what_is_a_number() -> None:
    meter = Meter()
    assert math.isnan(meter.loss())
    for losses in ([1.0, 2.0], [math.nan, 1.0], [5.0, 2.0]):
        meter.see(losses)
    assert meter.loss() == 5.0
    meter.reset()
    assert math.isnan(meter.loss())


def write_log(path: Path) -> list[dict[str, Any]]:
    """Three lines, with the mark after each."""
    log = RunLog(path)
    marks: list[dict[str, Any]] = []
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 0.1})
        marks.append(log.flush())
    return marks


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_log_appends_objects(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path)
    assert steps(path) == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[0]) == {"step": 1, "loss": 0.1}
    assert write_log(path) == write_log(path), "a new run begins a new log"
    assert steps(path) == [1, 2, 3]


@pytest.mark.parametrize("more", [b"", b'{"step": 4}\n', b'{"step": 4, "lo', b"\xff\xfe"])
def test_resume_drops_what_comes_after_its_state(more: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    marks = write_log(path)
    path.write_bytes(path.read_bytes() + more)
    log = RunLog(path, mark=marks[1])
    assert steps(path) == [1, 2]
    log.write({"step": 3, "loss": 0.1})
    assert log.flush() == marks[2]


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"0.1", b"0.3", 1)),
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:]),
    ],
)
def test_a_log_that_was_changed_is_refused(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    mark = write_log(path)[1]
    damage(path)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(UserError, match=r"log\.jsonl: damaged or gone"):
        RunLog(path, mark=mark)
    assert before == (path.read_bytes() if path.exists() else None)


def test_a_full_disk_names_the_log(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        log.write({"step": 1})
    assert caught.value.filename == str(tmp_path / "log.jsonl")


def test_narrator_says_plain_lines() -> None:
    stream = io.StringIO()
    with Narrator(stream=stream) as narrator:
        narrator.begin("training", 10)
        narrator.advance("3 img/s", what="epoch 0")
        narrator.say("[epoch 0] " + "x" * 300 + " [red]")
    # neither markup nor line breaks of its own, and no bar where nobody watches
    assert stream.getvalue() == "[epoch 0] " + "x" * 300 + " [red]\n"


def test_narrator_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with Narrator(stream=stream) as narrator:
        narrator.begin("training", 10, done=4)
        narrator.advance("3.0 img/s", what="epoch 2")
        narrator.say("a line")
        narrator.begin("downloading", 3, done=1)
        narrator.advance(amount=1.25)
    assert "epoch 2" in stream.getvalue()
    assert "5/10" in stream.getvalue()
    assert "2/3" in stream.getvalue()
    assert "3.0 img/s" in stream.getvalue()


def test_silent_narrator() -> None:
    stream = io.StringIO()
    with Narrator(enabled=False, stream=stream) as narrator:
        narrator.begin("training", 1)
        narrator.say("nobody hears this")
        narrator.advance()
    assert stream.getvalue() == ""
