"""The benchmarks' common ground: tables, turns, peers over a pipe, and the document they fill."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(
    path.name
    for path in BENCHMARKS.glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)

FAKE_PEER = """
import json, os, sys
for line in sys.stdin:
    words = json.loads(line)
    task = words.pop("task")
    if task == "versions":
        answer = {"fake": "1.0"}
    elif task == "end":
        break
    elif task == "refuse":
        answer = {"error": "no such size"}
    else:
        answer = {"seconds": 2.0, "words": words, "threads": os.environ["OMP_NUM_THREADS"]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("harness")


@pytest.fixture
def run_all(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("run_all")


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")
    return importlib.import_module("serving")


@pytest.fixture
def fake(harness: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The harness with one peer installed, whose name is `fake`."""
    (tmp_path / "benchmarks" / "peers").mkdir(parents=True)
    (tmp_path / "benchmarks" / "peers" / "fake.py").write_text(FAKE_PEER)
    (tmp_path / "fake" / "bin").mkdir(parents=True)
    (tmp_path / "fake" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(harness, "PEERS", tmp_path)
    monkeypatch.setattr(harness, "__file__", str(tmp_path / "benchmarks" / "harness.py"))
    return harness


def test_table(harness: ModuleType) -> None:
    rows = [("plain", 12345.6, 1.0), ("a longer one", 0.123456, 2.5)]
    report = harness.Report("Title", ("what", "pictures/s", "ratio"), rows, notes=("A note.",))
    title, facts, table, note = report.markdown().split("\n\n")
    assert (title, note) == ("## Title", "A note.")
    assert facts.count("`") == 2
    assert table.splitlines() == [
        "| what         | pictures/s | ratio |",
        "| ------------ | ---------: | ----: |",
        "| plain        |     12,346 |     1 |",
        "| a longer one |      0.123 |   2.5 |",
    ]


def test_json_is_one_object(harness: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    harness.Report("Title", ("what", "s"), [("a", 1.5)]).show(as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["rows"] == [{"what": "a", "s": 1.5}]
    assert shown["markdown"].startswith("## Title\n")


def test_turns_alternate_and_the_first_round_is_not_counted(harness: ModuleType) -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    contenders = {name: lambda name=name: measure(name) for name in "ab"}
    assert harness.in_turns(contenders, rounds=2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert calls == ["a", "b"] * 3


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0], [4.0], 0.25),
        # the machine slows down by 10 in the last round: the ratio stays
        ([2.0, 2.0, 20.0], [1.0, 1.0, 10.0], 2.0),
        # one bad round of one side: the median of 2, 2, 0.2
        ([2.0, 2.0, 2.0], [1.0, 1.0, 10.0], 2.0),
    ],
)
def test_ratio_is_the_median_of_pairs(
    harness: ModuleType, ours: list[float], theirs: list[float], expected: float
) -> None:
    assert harness.ratio(ours, theirs) == pytest.approx(expected)


def test_peer_answers(fake: ModuleType) -> None:
    with fake.peers(["fake"], threads=3) as running:
        peer = running["fake"]
        assert peer.versions == {"fake": "1.0"}
        answer = peer.ask("step", batch=4, network="darknet53")
        assert answer["words"] == {"batch": 4, "network": "darknet53"}
        assert answer["threads"] == "3"
        with pytest.raises(RuntimeError, match="fake: refuse: no such size"):
            peer.ask("refuse")
        assert peer.ask("step")["seconds"] == 2.0
        with pytest.raises(RuntimeError, match="it ended"):
            peer.ask("end")


def test_missing_peer_is_left_out(fake: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with fake.peers(["absent", "fake"], threads=1) as running:
        assert list(running) == ["fake"]
    said = capsys.readouterr().err
    assert said.startswith("absent is left out: ")
    assert said.endswith("(make peers)\n")


def test_serving(tmp_path: Path) -> None:
    """What a task prints is no answer; an exception is one."""
    (tmp_path / "peer.py").write_text(
        "from serving import serve\n"
        "def speak(n=1):\n"
        "    print('noise')\n"
        "    return {'seconds': 1 / n}\n"
        "serve({'speak': speak})\n"
    )
    requests = ['{"task": "speak"}', '{"task": "speak", "n": 0}', '{"task": "sing"}']
    ended = subprocess.run(
        [sys.executable, tmp_path / "peer.py"],
        check=True,
        capture_output=True,
        text=True,
        input="\n".join(requests),
        env={"PYTHONPATH": str(BENCHMARKS / "peers")},
    )
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert answers == [
        {"seconds": 1.0},
        {"error": "ZeroDivisionError: division by zero"},
        {"error": "KeyError: 'sing'"},
    ]
    assert ended.stderr == "noise\nnoise\n"


def test_looped_counts_units(serving: ModuleType) -> None:
    calls: list[int] = []
    answer = serving.looped(calls.append, count=3, group=4)
    assert calls == [0, 1, 2, 3]
    assert answer["count"] == 12
    assert 0 < answer["seconds"] < 0.1


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_of_processes_below_counts(serving: ModuleType) -> None:
    code = "data = bytearray(b'x') * 50_000_000; print(flush=True); input()"
    with serving.watched_memory(every=0.05) as series:
        while not series:
            time.sleep(0.01)
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as child:
            assert child.stdout
            child.stdout.readline()
            count = len(series)
            while len(series) < count + 2:
                time.sleep(0.01)
            child.communicate(b"\n")
    assert 50 < max(series) - series[0] < 90


DOCUMENT = "# Measurements\n\nWords.\n\n## A million pictures\n\nAs it was.\n"


def test_sections_of_the_document(run_all: ModuleType) -> None:
    first = run_all.with_section(DOCUMENT, "step", "## Step\n\n| a |\n")
    assert first == (
        "# Measurements\n\nWords.\n\n<!-- step -->\n\n## Step\n\n| a |\n\n<!-- /step -->\n"
        "\n## A million pictures\n\nAs it was.\n"
    )
    both = run_all.with_section(first, "loader", r"## Loader \1")
    again = run_all.with_section(both, "step", "## Step\n\n| \\1 |\n")
    assert again == both.replace("| a |", r"| \1 |")
    order = ["<!-- step -->", "<!-- /step -->", r"## Loader \1", "## A million pictures"]
    assert sorted(order, key=again.index) == order
    assert run_all.with_section("", "step", "x").strip().startswith("<!-- step -->")


def test_run_all_goes_on_after_a_failure(run_all: ModuleType, tmp_path: Path) -> None:
    report = {"markdown": "## Found"}
    (tmp_path / "loss.py").write_text("raise SystemExit('no such recipe')")
    (tmp_path / "memory.py").write_text("print('a table')")
    # understands no --peers
    (tmp_path / "step.py").write_text(
        f"import argparse; p = argparse.ArgumentParser(); p.add_argument('--json', nargs='?')\n"
        f"p.parse_args(); print({json.dumps(report)!r})"
    )
    document = tmp_path / "benchmarks.md"
    document.write_text(DOCUMENT)
    ended = subprocess.run(
        [
            *(sys.executable, BENCHMARKS / "run_all.py", "--peers", "--folder", tmp_path),
            *("--document", document, "loss", "memory", "step"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "loss failed: no such recipe\nmemory failed: with --json it printed 'a table\\n'\n"
    )
    assert re.fullmatch(r"step: \d+ s\n", ended.stdout)
    assert document.read_text() == run_all.with_section(DOCUMENT, "step", "## Found")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, where torch is imported already; found is what a script would find."""
    found = [path for path in sys.path if Path(path).resolve() != BENCHMARKS.parent]
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *found])
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_inference_runs() -> None:
    """A row for each program, limit and stage, with its smallest arguments."""
    words = ["--networks", "mobilenet0.25", "--batches", "1", "--rounds", "1", "--size", "64"]
    programs = ["torch plain", "torch fp32", "onnxruntime fp32", "onnxruntime int8"]
    words += ["--programs", *programs, "--threads", "1", "--json"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "inference.py", *words],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["program"]: row for row in json.loads(done.stdout)["rows"]}
    programs += ["limit fp32", "limit bf16", "limit int8"]
    assert list(rows) == [*programs, "- transform", "- input", "- network", "- decode + NMS"]
    assert rows["torch plain"]["x torch plain"] == "1.00"
    assert all(float(row["ms a picture"]) > 0 for row in rows.values())
