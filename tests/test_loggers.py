"""The copies of the log for other programs, read back with those programs' own readers.

Weights & Biases has no reader for its offline files: they are LevelDB's log format (blocks of 32
KiB, each record with CRC, length and type) of its own protobuf records.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.running import MakeRecipe, records, run_quietly
from triscale import adaptors, packages, runs
from triscale.adaptors import flat, scalars
from triscale.cli import main
from triscale.data.open import Data
from triscale.errors import UserError
from triscale.interrupt import Interrupted
from triscale.log import Narrator, RunLog
from triscale.loggers import LogConfig, Loggers
from triscale.training import train

ALL = ("tensorboard", "wandb", "mlflow")
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine's, and files beside the runs only here."""
    for name in os.environ:
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in adaptors.MLFLOW.items():  # set by the code, and forgotten after the test
        monkeypatch.setenv(name, value)


def read_tensorboard(run: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def read_mlflow(run: Path) -> Points:
    from mlflow.tracking import MlflowClient

    client = MlflowClient((run / "mlflow").absolute().as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "triscale"]
    (found,) = client.search_runs([experiment.experiment_id])
    points: Points = {}
    for key in found.data.metrics:
        history = client.get_metric_history(found.info.run_id, key)
        points[key] = [(point.step, point.value) for point in history]
    return points


def wandb_records(run: Path) -> list[Any]:
    """All of the one offline run; its last ones come a moment after its end."""
    (path,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(100):
        found = parse_wandb(path)
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.1)
    raise TimeoutError(path)


def parse_wandb(path: Path) -> list[Any]:
    from wandb.proto import wandb_internal_pb2

    content, found, part, at = path.read_bytes(), [], b"", 7  # behind the file's header
    while at + 7 <= len(content):
        if 0x8000 - at % 0x8000 < 7:  # no room for a header: the next block
            at += 0x8000 - at % 0x8000
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        if kind == 0:
            break
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


def read_wandb(run: Path) -> Points:
    points: Points = {}
    for record in wandb_records(run):
        if record.WhichOneof("record_type") != "history":
            continue
        # what has parts is a picture
        items = [item for item in record.history.item if len(item.nested_key) == 1]
        row = {item.nested_key[0]: json.loads(item.value_json) for item in items}
        for key, value in row.items():
            if key.startswith(("train/", "eval/")):
                points.setdefault(key, []).append((row["_step"], value))
    return points


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}


def expected(run: Path) -> Points:
    points: Points = {}
    for record in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
        for key, value in scalars(record).items():
            points.setdefault(key, []).append((record["step"], value))
    return points


def assert_equal(found: Points, wanted: Points, *, but: Sequence[str] = ()) -> None:
    """The same points, each once; TensorBoard's are of 32 bits."""
    assert sorted(found) == sorted(wanted)
    for key, points in wanted.items():
        assert [step for step, _ in found[key]] == [step for step, _ in points], key
        if key not in but:
            values = [np.float32(value) for _, value in points]
            assert [np.float32(value) for _, value in found[key]] == values, key


def test_nothing_is_asked_for(tmp_path: Path) -> None:
    LogConfig().require_installed()
    with Loggers(LogConfig(), tmp_path, recipe={}, warn=pytest.fail) as none:
        none.begin([], anew=True)
        none.write({"kind": "train", "step": 1, "loss": 1.0})
        none.pictures(1, [])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_imported_unasked() -> None:
    code = (
        "import sys, triscale.training, triscale.loggers as l\n"
        f"l.LogConfig({ALL}).require_installed()\n"
        f"print([name for name in {ALL} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=False, capture_output=True, text=True).stdout == "[]\n"


def test_an_unknown_logger() -> None:
    with pytest.raises(UserError, match=r"^log\.to: expected tensorboard, .*, got 'comet'$"):
        LogConfig(("wandb", "comet"))


@pytest.mark.parametrize("spec", [None, ModuleSpec("wandb", None)])
def test_a_missing_package_is_a_line(
    spec: ModuleSpec | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder `wandb` in the working directory, as runs leave it, is no package."""
    monkeypatch.setattr(packages, "find_spec", lambda name: spec)
    with pytest.raises(
        UserError,
        match=r"^log\.to needs wandb, .* 'triscale\[wandb\]'",
    ):
        LogConfig(("wandb",)).require_installed()


def test_it_is_missed_before_anything_starts(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'triscale\[mlflow\]'"):
        run_quietly(tiny_recipe("log.to=['mlflow']"), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("record", "values"),
    [
        ({"kind": "skipped", "step": 3, "what": "x"}, {}),
        ({"kind": "rollback", "step": 3, "from": 5}, {}),
        ({"kind": "eval", "epoch": 1, "step": 3, "metrics": {}}, {}),
        (
            {"kind": "eval", "step": 3, "metrics": {"mAP": 0.5, "AP/a b": 0.25, "AP/c": None}},
            {"eval/mAP": 0.5, "eval/AP/a b": 0.25},
        ),
        (
            {"kind": "train", "step": 3, "epoch": 1, "loss": 2.5, "lr": math.nan},
            {"train/epoch": 1, "train/loss": 2.5},
        ),
    ],
)
def test_scalars(record: Mapping[str, Any], values: Mapping[str, float]) -> None:
    assert scalars(record) == values


def test_a_recipe_as_parameters() -> None:
    recipe = {"train": {"epochs": 3, "init": "a.b"}, "model": {"anchors": [[1.5, 2.0]]}}
    wanted = {"train.epochs": "3", "train.init": "a.b", "model.anchors": "[[1.5, 2.0]]"}
    assert flat(recipe) == wanted


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("train/loss", "train/loss"),
        ("eval/AP50", "eval/AP50"),
        ("eval/AP/traffic light", "eval/AP/traffic light"),
        ("eval/AP/a/b", "eval/AP/a_2f_b"),
        ("eval/AP/..", "eval/AP/_2e_."),
        ("eval/AP/café & 人", "eval/AP/café _26_ 人"),
        ("eval/AP/U.S.", "eval/AP/U.S."),
    ],
)
def test_names_that_mlflow_takes(key: str, name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert adaptors.mlflow_name(key) == name
    _validate_metric_name(name)


@pytest.fixture
def stopped(data: Data, tiny_recipe: MakeRecipe, tmp_path: Path) -> Path:
    """A run with all three that was stopped after step 5; its newest state is then lost."""

    class Impatient(Narrator):
        steps = 0

        def advance(self, note: str = "", *, what: str | None = None, amount: float = 1) -> None:
            self.steps += 1
            if self.steps == 5:
                signal.raise_signal(signal.SIGINT)

        def warn(self, text: str) -> None:
            pytest.fail(text)

    run = tmp_path / "stopped"
    recipe = tiny_recipe(f"log.to={list(ALL)}", "checkpoint.every_steps=1", "checkpoint.keep=9")
    with pytest.raises(Interrupted):
        train(recipe, data, run, narrator=Impatient(enabled=False))
    for path in (run / "last").glob("step-00000005.*"):
        path.unlink()
    return run


def test_a_run_that_goes_on_has_each_point_once(
    stopped: Path, data: Data, tiny_recipe: MakeRecipe, trained: Path
) -> None:
    """In one run of each program, with the values of log.jsonl."""
    steps = [record["step"] for record in records(stopped, "train")]
    assert steps == [1, 2, 3, 4, 5]
    for read in READERS.values():
        assert_equal(read(stopped), expected(stopped))
    recipe = tiny_recipe(f"log.to={list(ALL)}")
    run_quietly(recipe, data, stopped, resume=True)
    wanted = expected(stopped)
    assert [step for step, _ in wanted["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]
    assert wanted["train/loss"] == expected(trained)["train/loss"]
    assert "eval/mAP" in wanted
    assert_equal(read_tensorboard(stopped), wanted)
    assert_equal(read_wandb(stopped), wanted)
    # what MLflow has, it keeps: all but the times is the same, bit for bit
    times = ("train/images_per_second", "train/data_seconds")
    assert_equal(read_mlflow(stopped), wanted, but=times)

    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ids = json.loads((stopped / "loggers.json").read_text())
    client = MlflowClient((stopped / "mlflow").absolute().as_uri())
    found = client.get_run(ids["mlflow"])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.epochs"] == "3"
    assert found.data.params["model.backbone"] == "mobilenet0.1"
    pictures = sorted((stopped / "predictions").glob("*.jpg"))
    kept = [file.path for file in client.list_artifacts(ids["mlflow"], "predictions")]
    assert kept == [f"predictions/{path.name}" for path in pictures]
    events = EventAccumulator(str(stopped / "tensorboard")).Reload()
    assert events.Tags()["images"] == [f"predictions/{path.stem}" for path in pictures]
    newest = events.Images(f"predictions/{pictures[0].stem}")[-1]
    assert newest.encoded_image_string == pictures[0].read_bytes()
    recipe_text = events.Tensors("recipe")[-1].tensor_proto.string_val[0].decode()
    assert "    [train]\n    epochs = 3\n" in recipe_text
    config = next(r.run.config for r in wandb_records(stopped) if r.HasField("run"))
    named = {update.key: json.loads(update.value_json) for update in config.update}
    assert named["train"]["epochs"] == 3


def say(log: RunLog, step: int) -> dict[str, Any]:
    log.write({"kind": "train", "step": step, "loss": 1.0 / step})
    log.write({"kind": "eval", "step": step, "metrics": {"mAP": step / 10}})
    return log.flush()


@pytest.mark.parametrize("name", ALL)
def test_a_logger_that_is_added_later_gets_the_whole_log(name: str, tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    mark = [say(log, step) for step in (1, 2, 3)][1]
    with Loggers(LogConfig((name,)), tmp_path, recipe={}, warn=pytest.fail) as added:
        log = RunLog(tmp_path / "log.jsonl", mark=mark, loggers=added)
        say(log, 3)
    assert_equal(READERS[name](tmp_path), expected(tmp_path))


@pytest.mark.parametrize("name", ALL)
def test_going_back_within_a_run(name: str, tmp_path: Path) -> None:
    """As after three steps that weren't finite: the log is cut, and goes on from there."""
    with Loggers(LogConfig((name,)), tmp_path, recipe={}, warn=pytest.fail) as asked:
        log = RunLog(tmp_path / "log.jsonl", loggers=asked)
        mark = [say(log, step) for step in (1, 2, 3, 4)][1]
        log = RunLog(tmp_path / "log.jsonl", mark=mark, loggers=asked)
        log.write({"kind": "rollback", "step": 2, "from": 4})
        for step in (3, 4, 5):
            say(log, step)
    assert_equal(READERS[name](tmp_path), expected(tmp_path))


def test_a_new_run_in_a_used_folder_is_a_new_run(tmp_path: Path) -> None:
    """Of an attempt that ended before its first state there are files; nothing goes on there."""
    ids: list[dict[str, str]] = []
    for last in (3, 1):
        with Loggers(LogConfig(ALL), tmp_path, recipe={}, warn=pytest.fail) as asked:
            log = RunLog(tmp_path / "log.jsonl", loggers=asked)
            for step in range(1, last + 1):
                say(log, step)
        ids.append(json.loads((tmp_path / "loggers.json").read_text()))
    assert ids[0]["wandb"] != ids[1]["wandb"]
    assert ids[0]["mlflow"] != ids[1]["mlflow"]
    assert_equal(read_tensorboard(tmp_path), expected(tmp_path))


def test_one_that_fails_is_switched_off_once(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """A store that is gone in the midst of a run, and a folder that can't be made."""

    class Saboteur(Narrator):
        def __init__(self) -> None:
            super().__init__(enabled=False)
            self.warnings: list[str] = []
            self.steps = 0

        def advance(self, note: str = "", *, what: str | None = None, amount: float = 1) -> None:
            self.steps += 1
            if self.steps == 3:
                shutil.rmtree(run / "mlflow")

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    run = tmp_path / "run"
    run.mkdir()
    (run / "wandb").write_text("in the way")
    (run / "tensorboard").write_text("in the way")
    narrator = Saboteur()
    train(tiny_recipe("log.to=['tensorboard', 'mlflow']"), data, run, narrator=narrator)
    assert [line.partition(" is ")[0] for line in narrator.warnings] == ["tensorboard", "mlflow"]
    assert "is switched off, the run goes on: " in narrator.warnings[0]
    assert "File exists" in narrator.warnings[0]
    assert records(run, "train")[-1]["step"] == 7


def test_a_full_disk_ends_tensorboard_alone(tmp_path: Path) -> None:
    said: list[str] = []
    with Loggers(LogConfig(("tensorboard",)), tmp_path, recipe={}, warn=said.append) as asked:
        log = RunLog(tmp_path / "log.jsonl", loggers=asked)
        say(log, 1)
        (logger,) = asked._open.values()
        logger._writer._writer.close()  # type: ignore[attr-defined]
        logger._writer._writer = open("/dev/full", "wb", buffering=0)  # type: ignore[attr-defined]  # noqa: SIM115
        file = logger._writer._writer  # type: ignore[attr-defined]
        say(log, 2)
        say(log, 3)
        file.close()
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 6


DEATHS = """
import os, signal, sys
from pathlib import Path
from triscale.log import RunLog
from triscale.loggers import LogConfig, Loggers

for last in (1, 3):
    folder = Path(sys.argv[1], str(last))
    folder.mkdir()
    with Loggers(LogConfig(("wandb",)), folder, recipe={}, warn=print) as asked:
        log = RunLog(folder / "log.jsonl", loggers=asked)
        for step in range(1, last + 1):
            log.write({"kind": "train", "step": step, "loss": 1.0})
            if step == 1:
                *_, newest = Path("/proc/thread-self/children").read_text().split()
                os.kill(int(newest), signal.SIGKILL)
"""


def test_a_service_that_dies_ends_wandb_alone(tmp_path: Path) -> None:
    """At the end of a run and in the midst of one: a warning each, and no traceback at the exit."""
    command = [sys.executable, "-c", DEATHS, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # wandb itself may say in a line that it couldn't finish
    warnings = [line.partition(": ")[0] for line in done.stdout.splitlines()]
    assert warnings == ["wandb is switched off, the run goes on"] * 2
    assert [len(records(tmp_path / last, "train")) for last in ("1", "3")] == [1, 3]


def test_log_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[list[str], str]] = []

    def resume(run: Path, *, overrides: list[str], volume: str) -> None:
        given.append((overrides, volume))

    monkeypatch.setattr(runs, "resume_run", resume)
    assert main(["train", "--resume", "r"]) == 0
    assert main(["train", "--resume", "r", "--log", "wandb, mlflow", "--quiet"]) == 0
    assert main(["train", "--resume", "r", "--log", "", "--verbose"]) == 0
    assert given == [
        ([], "normal"),
        (['log.to=["wandb", "mlflow"]'], "quiet"),
        (["log.to=[]"], "verbose"),
    ]
    assert main(["train", "nowhere", "--log", "comet"]) == 2
    assert "log.to: expected tensorboard, wandb, mlflow, got 'comet'" in capsys.readouterr().err
