"""`triscale eval`: the metric of weights on a data set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from triscale.commands.options import add_precision, add_set, add_volume, table

HELP = "measure weights on a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("weights", metavar="WEIGHTS_OR_RUN", help="a run folder: its best")
    parser.add_argument("data", metavar="DATA", help="folder or file of the data set")
    parser.add_argument("--split", metavar="S", help="default: the validation split")
    parser.add_argument("--size", type=int, metavar="N", help="default: as the weights say")
    parser.add_argument(
        "--metric", choices=["voc07", "voc", "coco"], help="default: as the weights say"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures at a time")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="data loading processes"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, cuda:N or auto")
    add_precision(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_volume(parser)
    add_set(parser)


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    from triscale.runs import evaluate_weights

    result = evaluate_weights(
        Path(arguments.weights),
        Path(arguments.data),
        split=arguments.split,
        size=arguments.size,
        metric=arguments.metric,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        precision=arguments.precision,
        overrides=arguments.overrides,
        volume=arguments.volume,
    )
    if arguments.json:
        print(json.dumps(result.to_json()))
        return
    table(
        ("class", "AP"),
        [(name, f"{ap:.4f}") for name, ap in result.per_class.items() if ap == ap],
    )
    for name, value in result.numbers.items():
        print(f"{name} {value:.4f}" if value == value else f"{name} -")
    print(f"{result.headline()} on {result.images} pictures")
