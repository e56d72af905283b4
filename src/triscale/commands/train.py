"""`triscale train`: start a run, go on with one, or do whichever is due."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Collection
from pathlib import Path

from triscale.commands.options import add_set, add_volume
from triscale.config import key_of, quoted
from triscale.errors import UserError
from triscale.interrupt import leaving_at_once

HELP = "train a detector, or go on with a run"
DEFAULT_RECIPE, INIT_RECIPE = "modern", "finetune"  # what is fitted where no recipe is named
_YEAR = 525_600  # minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder or file of the data set")
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="use it as it is (default: "
        f"{DEFAULT_RECIPE}, with --init {INIT_RECIPE}, fitted to the data and the machine)",
    )
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/DATA-RECIPE)")
    parser.add_argument("--init", metavar="WEIGHTS", help="weights to start from")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run where it stopped")
    parser.add_argument(
        "--auto-resume", action="store_true", help="go on with the run in --out if there is one"
    )
    parser.add_argument("--epochs", metavar="N", help="each shows every training picture once")
    parser.add_argument("--minutes", metavar="N", help="as many epochs as fit into so much time")
    parser.add_argument("--batch-size", metavar="N", help="pictures in a step")
    parser.add_argument("--size", metavar="N", help="side of the square network input, in pixels")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--workers", metavar="N", help="data loading processes")
    parser.add_argument("--seed", metavar="N")
    parser.add_argument(
        "--log",
        metavar="NAMES",
        help="also log to these, joined by commas: tensorboard, wandb, mlflow (default: none)",
    )
    add_volume(parser)
    parser.add_argument(
        "--verbose",
        action="store_const",
        const="verbose",
        dest="volume",
        help="a line for every step",
    )
    add_set(parser)


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    with leaving_at_once():
        _start_or_resume(arguments)


def _start_or_resume(arguments: argparse.Namespace) -> None:
    began = time.perf_counter()  # before the heavy imports
    flags = {
        "train.epochs": arguments.epochs,
        "train.batch_size": arguments.batch_size,
        "train.size": arguments.size,
        "train.device": arguments.device,
        "train.workers": arguments.workers,
        "train.seed": arguments.seed,
    }
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    if arguments.init:
        overrides.append(quoted("train.init", arguments.init))
    if arguments.log is not None:
        names = [name.strip() for name in arguments.log.split(",") if name.strip()]
        overrides.append(quoted("log.to", names))
    overrides += arguments.overrides
    if arguments.out == "":  # an unset variable of a script
        raise UserError("--out: expected a folder, got an empty text")
    if arguments.resume:
        given = ("data", "recipe", "out", "init", "batch_size", "seed", "auto_resume", "minutes")
        for name in given:
            if getattr(arguments, name) not in (None, False):
                raise UserError(
                    f"--resume goes on with a run as it is: {name} can't be given again"
                )
        from triscale.runs import resume_run

        resume_run(Path(arguments.resume), overrides=overrides, volume=arguments.volume)
        return
    if arguments.data is None:
        raise UserError("train: name the data set (DATA), or a run to go on with (--resume RUN)")
    keys = frozenset(map(key_of, overrides))
    minutes = _minutes(arguments.minutes, keys)
    from triscale.recipe import load_recipe
    from triscale.runs import Wishes, start_or_resume, start_run

    recipe = arguments.recipe or (INIT_RECIPE if arguments.init else DEFAULT_RECIPE)
    base = None if arguments.recipe else load_recipe(recipe)
    wishes = Wishes(base, given=keys, minutes=minutes, since=began)
    if arguments.auto_resume:
        if arguments.out is None:
            raise UserError("--auto-resume: name the run folder with --out")
        out = Path(arguments.out)
        start_or_resume(
            Path(arguments.data),
            recipe,
            out=out,
            overrides=overrides,
            wishes=wishes,
            volume=arguments.volume,
        )
        return
    start_run(
        Path(arguments.data),
        load_recipe(recipe, overrides=overrides),
        name=Path(recipe).stem,
        out=Path(arguments.out) if arguments.out else None,
        wishes=wishes,
        volume=arguments.volume,
    )


def _minutes(text: str | None, keys: Collection[str]) -> float | None:
    if text is None:
        return None
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= _YEAR:
        raise UserError(f"--minutes: expected a number above 0 and up to {_YEAR:,}, got '{text}'")
    if "train.epochs" in keys:
        raise UserError("--minutes decides the number of epochs: --epochs can't be given too")
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UserError(
            "--minutes: can't measure with several processes; measure with one, or use --epochs"
        )
    return minutes
