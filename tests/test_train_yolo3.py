"""The reference's flags: all of them, with its defaults, and a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from triscale.recipe import Recipe, load_recipe
from triscale.train_yolo3 import _parser, main, settings_of

# GluonCV scripts/detection/yolo/train_yolo3.py at its last release, in the order of --help.
REFERENCE = [
    ("--network", "darknet53"),
    ("--data-shape", 416),
    ("--batch-size", 64),
    ("--dataset", "voc"),
    ("--num-workers", 4),
    ("--gpus", "0"),
    ("--epochs", 200),
    ("--resume", ""),
    ("--start-epoch", 0),
    ("--lr", 0.001),
    ("--lr-mode", "step"),
    ("--lr-decay", 0.1),
    ("--lr-decay-period", 0),
    ("--lr-decay-epoch", "160,180"),
    ("--warmup-lr", 0.0),
    ("--warmup-epochs", 0),
    ("--momentum", 0.9),
    ("--wd", 0.0005),
    ("--log-interval", 100),
    ("--save-prefix", ""),
    ("--save-interval", 10),
    ("--val-interval", 1),
    ("--seed", 233),
    ("--num-samples", -1),
    ("--syncbn", False),
    ("--no-random-shape", False),
    ("--no-wd", False),
    ("--mixup", False),
    ("--no-mixup-epochs", 20),
    ("--label-smooth", False),
    ("--amp", False),
    ("--horovod", False),
]


def settings(*words: str) -> Recipe:
    return settings_of(_parser().parse_args(words), "cpu")


@pytest.mark.parametrize(("flag", "default"), REFERENCE)
def test_flags_and_defaults(flag: str, default: Any) -> None:
    parsed = vars(_parser().parse_args([]))
    name = flag.removeprefix("--").replace("-", "_")
    assert parsed[name] == default
    assert type(parsed[name]) is type(default)
    words = [flag] if default is False else [flag, str(default)]
    assert vars(_parser().parse_args(words))[name] == (True if default is False else default)


def test_two_flags_of_our_own() -> None:
    known = {f"--{name.replace('_', '-')}" for name in vars(_parser().parse_args([]))}
    assert known == {flag for flag, _ in REFERENCE} | {"--root", "--pretrained-base"}


def test_defaults_are_the_reference_run() -> None:
    recipe = settings()
    assert recipe.augment.random_shape
    assert (recipe.augment.shape_min, recipe.augment.shape_max) == (320, 608)
    assert (recipe.schedule.decay_epochs, recipe.schedule.num_samples) == ((160, 180), 0)
    assert recipe.data.inclusive_boxes
    assert recipe.evaluate.network_resolution
    assert recipe.model.init == "uniform"
    assert recipe.train.precision == "fp32"
    assert recipe.optim == load_recipe("gluoncv-voc").optim
    assert recipe.augment == load_recipe("gluoncv-voc").augment


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--network mobilenet0.25", "model.backbone", "mobilenet0.25"),
        ("--data-shape 320", "train.size", 320),
        ("--batch-size 8", "train.batch_size", 8),
        ("-j 2", "train.workers", 2),
        ("--num-workers 3", "train.workers", 3),
        ("--epochs 5", "train.epochs", 5),
        ("--resume w.safetensors", "train.init", "w.safetensors"),
        ("--pretrained-base darknet53", "train.init", "darknet53"),
        ("--start-epoch 4", "train.start_epoch", 4),
        ("--lr 0.01", "optim.lr", 0.01),
        ("--lr-mode poly", "schedule.mode", "poly"),
        ("--lr-decay 0.5", "schedule.decay", 0.5),
        ("--lr-decay-period 7", "schedule.decay_period", 7),
        ("--lr-decay-epoch 1,2", "schedule.decay_epochs", (1, 2)),
        ("--lr-decay-epoch 3", "schedule.decay_epochs", (3,)),
        ("--warmup-lr 0.0001", "schedule.warmup_lr", 0.0001),
        ("--warmup-epochs 2", "schedule.warmup_epochs", 2),
        ("--momentum 0.8", "optim.momentum", 0.8),
        ("--wd 0.01", "optim.weight_decay", 0.01),
        ("--log-interval 10", "train.log_interval", 10),
        ("--save-interval 3", "train.save_interval", 3),
        ("--val-interval 2", "train.val_interval", 2),
        ("--seed 1", "train.seed", 1),
        ("--num-samples 100", "schedule.num_samples", 100),
        ("--num-samples 100", "data.num_samples", 0),  # it shortens the schedule only
        ("--syncbn", "train.syncbn", True),
        ("--no-random-shape", "augment.random_shape", False),
        ("--no-wd", "optim.no_wd", True),
        ("--mixup", "augment.mixup", True),
        ("--no-mixup-epochs 3", "augment.mixup_off_epochs", 3),
        ("--label-smooth", "loss.label_smooth", True),
        ("--amp", "train.precision", "fp16"),
    ],
)
def test_each_flag_reaches_the_recipe(words: str, key: str, value: Any) -> None:
    section, name = key.split(".")
    assert getattr(getattr(settings(*words.split()), section), name) == value


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--lr-decay-epoch 1;2", "--lr-decay-epoch: expected epochs as in 160,180, got '1;2'"),
        ("--gpus a", "--gpus: expected numbers as in 0,1,2 (or nothing), got 'a'"),
        ("--horovod", "--horovod: start the processes with torchrun"),
        ("--resume a.params --pretrained-base b", "--pretrained-base: --resume names the weights"),
        ("--epochs 0", "train.epochs: expected at least 1, got 0"),
        ("--root /nowhere", "/nowhere: no such folder"),
    ],
)
def test_mistakes(
    words: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["--gpus", "", *words.split()]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"triscale: error: {text}")
    assert message.count("\n") == 1


def test_a_run(devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bag of freebies for two epochs; then the run folder is resumed, and does nothing more."""
    monkeypatch.chdir(tmp_path)
    words = (
        f"--root {devkit} --network mobilenet0.1 --data-shape 64 --batch-size 4 --gpus= -j 0 "
        "--epochs 2 --mixup --no-mixup-epochs 1 --label-smooth --no-wd --lr-mode cosine "
        "--warmup-epochs 1 --no-random-shape --log-interval 1 --save-prefix out/"
    ).split()
    assert main(words) == 0
    run = tmp_path / "out" / "yolo3_mobilenet0.1_voc"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    # 5 steps: 2 of warm-up from 0 to the full rate, then half a cosine from it down to 0.
    assert [line["lr"] for line in trained] == pytest.approx([0, 1e-3, 1e-3, 5e-4, 0], abs=1e-9)
    assert [line["epoch"] for line in lines if line["kind"] == "eval"] == [0, 1]
    before = (run / "log.jsonl").read_text()
    assert main([*words, "--resume", str(run)]) == 0
    assert (run / "log.jsonl").read_text() == before
    assert main(words) == 2, "a second run into the same folder is refused"
