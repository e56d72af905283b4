"""The log file, the meters and what a person sees."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group

from triscale import log
from triscale.errors import UserError
from triscale.log import Meter, Narrator, RunLog, Volume, duration


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
    assert meter.losses() == []
    for losses in ([1.0, 2.0], [math.nan, 1.0], [5.0, 3.0]):
        meter.see(losses)
    assert meter.losses() == [3.0, 2.5]
    meter.reset()
    assert meter.losses() == []


def test_meter_tells_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: steps of 2 s, of which 0.5 s are a wait, and a validation of 10 s."""
    now = [0.0]
    monkeypatch.setattr(log.time, "perf_counter", lambda: now[0])
    meter = Meter()
    assert meter.recent() == (0, 0.0, 0.0)
    assert meter.recent().share == 0
    assert math.isnan(meter.seconds_left(steps=5, epochs=1))
    now[0] = 60.0  # the loading processes start
    meter.add(images=8, data_seconds=59.0)
    assert math.isnan(meter.seconds_left(steps=5, epochs=1)), "the first step tells nothing"
    for _ in range(3):
        now[0] += 2.0
        meter.add(images=8, data_seconds=0.5)
    assert meter.recent() == (3, 6.0, 1.5)
    assert meter.recent().share == 0.25
    assert meter.seconds_left(steps=5, epochs=2) == 10.0
    now[0] += 10.0
    meter.reset()
    now[0] += 2.0
    meter.add(images=8, data_seconds=0.5)
    assert meter.recent() == (4, 8.0, 2.0), "a validation isn't a step"
    assert meter.seconds_left(steps=5, epochs=2) == 30.0
    for _ in range(200):
        now[0] += 1.0
        meter.add(images=8, data_seconds=0.0)
    assert meter.recent() == (100, 100.0, 0.0), "the newest ones"
    for _ in range(1000):
        now[0] += 0.125
        meter.add(images=8, data_seconds=0.0625)
    assert meter.recent() == (480, 60.0, 30.0), "those of a minute, where steps are short"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-:--:--"),
        (math.nan, "-:--:--"),
        (math.inf, "-:--:--"),
        (0.0, "0:00:00"),
        (59.6, "0:01:00"),
        (3661.0, "1:01:01"),
        (360000.0, "100:00:00"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_narrator_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_narrator_shows_a_part_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the screen in the end, of 80 columns; the part stands above the whole."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    narrator = Narrator(stream=Terminal())
    assert not narrator.live
    narrator.begin("9 epochs", 90, done=40)
    assert narrator.live
    narrator.part("epoch 4", 1, 10)
    narrator.advance()
    narrator.part("validating", 2, 3)
    narrator.show(["loss 1.5", "x" * 100], left=3661.0)
    console = Console(width=80, record=True, file=io.StringIO())
    for part in narrator._view.get_renderables():  # type: ignore[union-attr]
        console.print(Group(part))
    narrator.end()
    assert not narrator.live
    first, second, *rest = [line.rstrip() for line in console.export_text().splitlines()]
    assert first.startswith("validating ━")
    assert first.endswith("  2/3 -:--:-- left")
    assert second.startswith("9 epochs   ━")
    assert second.endswith("41/90 1:01:01 left")
    assert rest == ["loss 1.5", "x" * 79 + "…"]


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_no_view_on_a_dumb_terminal(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    with Narrator(stream=Terminal()) as narrator:
        narrator.begin("training", 10)
        assert not narrator.live


@pytest.mark.parametrize(
    ("volume", "heard"),
    [
        ("quiet", ["warning: [b]", "d"]),
        ("normal", ["a", "warning: [b]", "d"]),
        ("verbose", ["a", "warning: [b]", "each step", "d"]),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_volume(
    volume: Volume, heard: list[str], terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal() if terminal else io.StringIO()
    with Narrator(stream=stream, volume=volume) as narrator:
        narrator.say("a")
        narrator.warn("[b]")
        if narrator.verbose:
            narrator.say("each step")
        narrator.begin("training", 10)
        assert narrator.live == (terminal and volume != "quiet")
        narrator.end()
        narrator.conclude("d")
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert [
        line for line in said.replace("\r", "\n").splitlines() if line[:1] in list("awed")
    ] == heard
