"""`python -m triscale.train_yolo3`: the flags of GluonCV's train_yolo3.py, every one of them.

Names, defaults and meanings are the reference's; where its behaviour was a mistake (mixup that
never reached the workers, a warm-up rate that was never read) the flag does what it says: see
docs/differences.md. Results go to a run folder named as the reference names its
files: <save-prefix>yolo3_<network>_<dataset>.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from triscale.cli import guarded
from triscale.errors import UserError

if TYPE_CHECKING:
    from triscale.recipe import Recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Train as `argv` (default: the process's arguments) says; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    return guarded(lambda: _run(arguments, words))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m triscale.train_yolo3",
        description="Train YOLOv3 with the flags of GluonCV's train_yolo3.py.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--network", default="darknet53", help="darknet53, mobilenet1.0, mobilenet0.25, tiny")
    add("--data-shape", type=int, default=416, help="validation size; training's, if it is fixed")
    add("--batch-size", type=int, default=64, help="of all devices together")
    add("--dataset", choices=["voc", "coco"], default="voc")
    add("--root", default="", help="data set folder (empty: ~/.mxnet/datasets/<dataset>)")
    add("--num-workers", "-j", type=int, default=4)
    add("--gpus", default="0", help="GPU numbers as in 0,1,2; empty for the CPU")
    add("--epochs", type=int, default=200)
    add("--resume", default="", help="weights file to start from, or a run folder to go on with")
    add("--pretrained-base", default="", help="ImageNet weights: a file, or a downloaded name")
    add("--start-epoch", type=int, default=0, help="with a weights file: the epoch to begin at")
    add("--lr", type=float, default=0.001)
    modes = ["constant", "step", "linear", "poly", "cosine"]
    add("--lr-mode", choices=modes, default="step")
    add("--lr-decay", type=float, default=0.1)
    add("--lr-decay-period", type=int, default=0, help="0: use --lr-decay-epoch")
    add("--lr-decay-epoch", default="160,180")
    add("--warmup-lr", type=float, default=0.0)
    add("--warmup-epochs", type=int, default=0)
    add("--momentum", type=float, default=0.9)
    add("--wd", type=float, default=0.0005)
    add("--log-interval", type=int, default=100)
    add("--save-prefix", default="")
    add("--save-interval", type=int, default=10)
    add("--val-interval", type=int, default=1)
    add("--seed", type=int, default=233)
    add(
        "--num-samples",
        type=int,
        default=-1,
        help="length of the schedule's epochs; -1: the data's",
    )
    add("--syncbn", action="store_true")
    add("--no-random-shape", action="store_true")
    add("--no-wd", action="store_true", help="no weight decay on bias, gamma and beta")
    add("--mixup", action="store_true")
    add("--no-mixup-epochs", type=int, default=20, help="no mixup in so many last epochs")
    add("--label-smooth", action="store_true")
    add("--amp", action="store_true", help="fp16 with loss scaling")
    add("--horovod", action="store_true", help="several processes, started by torchrun")
    return parser


def _run(arguments: argparse.Namespace, words: list[str]) -> None:
    gpus = [int(word) for word in arguments.gpus.split(",") if word.strip().isdigit()]
    if len(gpus) != sum(bool(word.strip()) for word in arguments.gpus.split(",")):
        raise UserError(
            f"--gpus: expected numbers as in 0,1,2 (or nothing), got '{arguments.gpus}'"
        )
    launched = "WORLD_SIZE" in os.environ
    if arguments.horovod and not launched:
        raise UserError(
            "--horovod: start the processes with torchrun: "
            "torchrun --nproc-per-node N -m triscale.train_yolo3 ..."
        )
    if arguments.resume and arguments.pretrained_base:
        raise UserError("--pretrained-base: --resume names the weights to start from already")
    if len(gpus) > 1 and not launched:
        _launch(gpus, words)

    from triscale.distributed import choose_device
    from triscale.runs import resume_run, start_run

    if arguments.resume and Path(arguments.resume).is_dir():
        resume_run(Path(arguments.resume))
        return
    device = "cpu" if not gpus else "cuda" if launched else f"cuda:{gpus[0]}"
    if gpus and choose_device("auto").type == "cpu":
        print(f"no GPU can be used here: --gpus {arguments.gpus} becomes the CPU", file=sys.stderr)
        device = "cpu"
    name = f"{arguments.save_prefix}yolo3_{arguments.network}_{arguments.dataset}"
    root = arguments.root or f"~/.mxnet/datasets/{arguments.dataset}"
    settings = settings_of(arguments, device)
    start_run(Path(root).expanduser(), settings, name=name, out=Path(name))


def _launch(gpus: list[int], words: list[str]) -> None:
    """Become torchrun with one process per GPU; does not return."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(gpus)}"]
    command = [sys.executable, *launcher, "-m", "triscale.train_yolo3", *words]
    os.execv(sys.executable, command)


def settings_of(arguments: argparse.Namespace, device: str) -> Recipe:
    """The recipe that the flags mean."""
    from triscale.data.augment import AugmentConfig
    from triscale.data.options import DataConfig
    from triscale.evaluation import EvalConfig
    from triscale.loss import LossConfig
    from triscale.model.yolo import ModelConfig
    from triscale.optim import OptimConfig
    from triscale.recipe import Recipe, TrainConfig
    from triscale.schedule import ScheduleConfig

    try:
        decay_epochs = tuple(int(e) for e in arguments.lr_decay_epoch.split(",") if e.strip())
    except ValueError:
        raise UserError(
            f"--lr-decay-epoch: expected epochs as in 160,180, got '{arguments.lr_decay_epoch}'"
        ) from None
    return Recipe(
        train=TrainConfig(
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            size=arguments.data_shape,
            seed=arguments.seed,
            workers=-(-arguments.num_workers // int(os.environ.get("WORLD_SIZE", "1"))),
            device=device,
            precision="fp16" if arguments.amp else "fp32",
            syncbn=arguments.syncbn,
            start_epoch=arguments.start_epoch,
            init=arguments.resume or arguments.pretrained_base,
            log_interval=arguments.log_interval,
            val_interval=arguments.val_interval,
            save_interval=arguments.save_interval,
        ),
        # COCO has boxes less than a pixel wide, which this convention turns into nothing.
        data=DataConfig(inclusive_boxes=True, skip_bad=arguments.dataset == "coco"),
        model=ModelConfig(backbone=arguments.network),
        augment=AugmentConfig(
            hue=3240.0,  # gluoncv: 18 half-turns, see docs/differences.md
            random_shape=not arguments.no_random_shape,
            mixup=arguments.mixup,
            mixup_off_epochs=arguments.no_mixup_epochs,
        ),
        loss=LossConfig(label_smooth=arguments.label_smooth),
        optim=OptimConfig(
            lr=arguments.lr,
            momentum=arguments.momentum,
            weight_decay=arguments.wd,
            no_wd=arguments.no_wd,
        ),
        schedule=ScheduleConfig(
            mode=arguments.lr_mode,
            warmup_epochs=arguments.warmup_epochs,
            warmup_lr=arguments.warmup_lr,
            decay=arguments.lr_decay,
            decay_epochs=decay_epochs,
            decay_period=arguments.lr_decay_period,
            num_samples=max(arguments.num_samples, 0),
        ),
        # gluoncv: its VOC metric compares after the resize, its COCO metric in original pixels.
        evaluate=EvalConfig(network_resolution=arguments.dataset == "voc"),
    )


if __name__ == "__main__":
    sys.exit(main())
