"""Real launchers: torchrun, and the scripts for clusters with stand-ins for Slurm's commands.

What the runs must come to is computed by one process that knows of no other.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY, set_words
from tests.launching import TORCHRUN, TRAIN, Launched, launched, processes_with
from tests.running import losses, run_quietly
from tests.test_docs import commands, parse, text
from triscale.cli import make_parser
from triscale.data.open import open_dataset
from triscale.recipe import load_recipe

CLUSTERS = Path(__file__).resolve().parents[1] / "examples" / "clusters"
SCRIPTS = sorted(CLUSTERS.glob("*.sbatch"))
STEPS = 15
SETTINGS = (
    *TINY,
    "train.epochs=6",
    "train.val_interval=0",
    "train.syncbn=true",
    "model.backbone=tiny",
    "optim.lr=0.0001",  # low, so that rounding errors do not grow
)
OVERRIDES = set_words(*SETTINGS)


def train(devkit: Path, run: Path) -> list[str]:
    words = ["--recipe", "small", "--out", str(run), "--auto-resume", *OVERRIDES]
    return [*TRAIN, str(devkit), *words]


def torchrun(count: int, *options: str) -> list[str]:
    return [*TORCHRUN, "--standalone", "--nproc-per-node", str(count), *options]


def step_of(run: Path) -> int:
    """The step of the newest whole line of the log."""
    log = run / "log.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def stopped_at(said: str) -> list[int]:
    return [int(step) for step in re.findall(r"^triscale: stopped after step (\d+)", said, re.M)]


def run_until(step: int, running: Launched, run: Path) -> list[int]:
    """Wait for a step; the ids of the training processes, by their rank."""
    running.wait_until(lambda: step_of(run) >= step)
    return [number for number, _ in processes_with(str(run))]


def all_gone(run: Path) -> bool:
    deadline = time.monotonic() + 10
    while processes_with(str(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not processes_with(str(run))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, devkit: Path) -> list[float]:
    """The losses of the whole run in one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    settings = load_recipe("small", overrides=SETTINGS)
    run_quietly(settings, open_dataset(devkit, settings.data), run)
    return [record["loss"] for record in losses(run)]


def assert_whole(run: Path, expected: list[float]) -> None:
    """One log without gaps or doubles, and the losses of one process."""
    assert [record["step"] for record in losses(run)] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in losses(run)] == pytest.approx(expected, rel=1e-3)
    assert (run / "last" / f"step-{STEPS:08d}.json").exists()


# --- torchrun ------------------------------------------------------------------------------------


def test_killed_restarted_stopped_and_resumed_by_others(
    devkit: Path, tmp_path: Path, expected: list[float]
) -> None:
    """Two processes, two again after one was killed, then three, then one: one run."""
    run = tmp_path / "run"
    command = [*torchrun(2, "--max-restarts", "1"), *train(devkit, run)]
    with launched(command, tmp_path / "first.txt") as running:
        os.kill(run_until(3, running, run)[1], signal.SIGKILL)
        running.wait_until(lambda: "resuming after step" in running.said())
        os.kill(run_until(5, running, run)[1], signal.SIGTERM)  # one of them
        code, said = running.finish()
    # torchrun may end one that is about to say so, once the other has exited; all is saved then
    (first,) = set(stopped_at(said))
    assert first == step_of(run) < STEPS - 3, said
    assert (run / "last" / f"step-{first:08d}.json").exists()
    assert code != 0
    assert re.findall(r"exitcode +: (-?\d+)", said)[-1] == "75", "of the first that ended"
    command = [*torchrun(3, "--monitor-interval", "2"), *train(devkit, run)]
    with launched(command, tmp_path / "second.txt") as running:
        os.kill(run_until(first + 1, running, run)[0], signal.SIGKILL)  # the main one
        killed = time.monotonic()
        code, said = running.finish()
    assert code != 0
    assert time.monotonic() - killed < 30
    assert all_gone(run)
    assert f"resuming after step {first}\n" in said
    assert said.count("can't be reached; its own message says why") == 2
    assert "src/triscale" not in said, "a traceback"
    assert step_of(run) < STEPS
    command = [sys.executable, *TRAIN, "--resume", str(run)]
    with launched(command, tmp_path / "third.txt") as running:
        code, said = running.finish()
    assert code == 0, said
    assert_whole(run, expected)


def test_a_mistake_that_one_process_finds_is_shown(devkit: Path, tmp_path: Path) -> None:
    """A picture turns unreadable while they train; one of them comes upon it."""
    data, run = tmp_path / "VOCdevkit", tmp_path / "run"
    shutil.copytree(devkit, data)
    index = open_dataset(data, load_recipe("small", overrides=SETTINGS).data).train
    assert index
    picture = Path(index.paths[0])
    command = [*torchrun(2, "--monitor-interval", "2"), *train(data, run)]
    with launched(command, tmp_path / "said.txt") as running:
        run_until(1, running, run)
        picture.write_bytes(b"not a picture any more")
        code, said = running.finish()
    assert code != 0
    assert all_gone(run)
    assert re.search(rf"^triscale: error: {re.escape(str(picture))}: ", said, re.M), said
    assert said.count("can't be reached; its own message says why") == 1
    assert "src/triscale" not in said, "a traceback"


# --- scripts for clusters ------------------------------------------------------------------------


SRUN = """#!/bin/bash
# Starts SLURM_NTASKS tasks here, passes SIGTERM on to them, ends with the highest exit code.
while [[ $1 == --* ]]; do shift; done
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    tasks+=($!)
done
trap 'told=1; kill -TERM "${tasks[@]}"' TERM
worst=0
for task in "${tasks[@]}"; do
    wait "$task"
    code=$?
    if [ -n "$told" ]; then wait "$task"; code=$?; fi
    ((code > worst)) && worst=$code
done
exit $worst
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >>"$REQUEUED"; else echo 127.0.0.1; fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes, which both are this machine."""
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PROCESSES_PER_NODE": "1",
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
    }


def test_slurm_job_is_requeued_until_it_is_done(
    slurm: dict[str, str], devkit: Path, tmp_path: Path, expected: list[float]
) -> None:
    """With torchrun on two nodes, then by srun alone, twice; each time to the signal."""
    run, requeued = tmp_path / "run", tmp_path / "requeued"
    words = train(devkit, run)[len(TRAIN) :]
    words.remove("--auto-resume")
    job = slurm["SLURM_JOB_ID"]
    command = ["bash", str(CLUSTERS / "slurm.sbatch"), *words]
    with launched(command, tmp_path / "first.txt", env=slurm) as running:
        run_until(2, running, run)
        running.process.send_signal(signal.SIGUSR1)  # B: the batch script alone
        code, said = running.finish()
    assert len(stopped_at(said)) == 1, said  # one speaks for all
    assert requeued.read_text().split() == [job]
    assert all_gone(run)
    command = ["bash", str(CLUSTERS / "slurm_srun.sbatch"), *words]
    with launched(command, tmp_path / "second.txt", env=slurm) as running:
        for process in run_until(step_of(run) + 1, running, run):
            os.kill(process, signal.SIGUSR1)  # the processes of the step
        code, said = running.finish()
    assert len(stopped_at(said)) == 1, said  # one speaks for all
    assert code == 75
    assert requeued.read_text().split() == [job, job]
    with launched(command, tmp_path / "third.txt", env=slurm) as running:
        code, said = running.finish()
    assert code == 0, said
    assert requeued.read_text().split() == [job, job]
    assert_whole(run, expected)


def test_documented_commands() -> None:
    """Those of docs/clusters.md parse; run folders are there for a restart where one is due."""
    found = commands(text("docs/clusters.md"))
    assert len(found) == 3
    for words in found:
        load_recipe(parse(words).recipe)
        assert ("--max-restarts" in words) == ("--auto-resume" in words)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts(path: Path) -> None:
    """Shell that parses; options before all commands; a usage line that triscale understands."""
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options[-1] < next(i for i, line in enumerate(lines) if line and line[0] != "#")
    (usage,) = [line for line in lines if line.startswith("#   sbatch ")]
    _, script, *words = shlex.split(usage[1:])
    assert CLUSTERS.parents[1] / script == path
    assert_trains([*words, "--auto-resume"])


def test_kubernetes_job() -> None:
    job = yaml.safe_load((CLUSTERS / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "pytorch", "the operator finds it by this name"
    program, processes, *words = container["command"]
    assert (program, words[:3]) == ("torchrun", list(TRAIN))
    assert processes == f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}"
    assert_trains(words[3:])
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def assert_trains(words: list[str]) -> None:
    """`triscale train` accepts the words, and they let a job be restarted."""
    arguments = make_parser().parse_args(["train", *words])
    load_recipe(arguments.recipe, overrides=arguments.overrides)
    assert arguments.data
    assert arguments.out
    assert arguments.auto_resume
