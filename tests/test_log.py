"""The log file, the meters and what a person sees."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from triscale import log
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


def test_log_appends_objects(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    RunLog(path, from_step=0).write({"step": 1, "loss": 0.1})
    RunLog(path, from_step=1).write({"step": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.1},
        {"step": 2},
    ]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("", []),
        ('{"step": 1}\n{"step": 2}\n', [1, 2]),
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n', [1, 2]),
        ('{"step": 2}\n{"step": 3, "lo', [2]),  # cut short by a crash
        ('{"step": 1}\nnull\n[]\n{"kind": "train"}\n', [1]),
    ],
)
def test_resume_drops_what_comes_after_its_state(
    content: str, kept: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    RunLog(path, from_step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == kept


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
