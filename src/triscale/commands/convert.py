"""`triscale convert`: weights from one format to another."""

from __future__ import annotations

import argparse
from pathlib import Path

from triscale.commands.options import require_new

HELP = "weights from one format to another; the names' ends say which"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("source", metavar="IN", help=".params, .weights, .npz, .safetensors")
    parser.add_argument("target", metavar="OUT", help=".params, .weights or .safetensors")
    parser.add_argument("--cfg", metavar="FILE", help="Darknet's description (default: beside IN)")
    parser.add_argument("--classes", metavar="FILE", help="class names, one on each line")
    parser.add_argument("--size", type=int, metavar="N", help="side of the network input")
    parser.add_argument("--fit", choices=["stretch", "letterbox"], help="pictures to the input")
    parser.add_argument(
        "--force", action="store_true", help="replace OUT (and its .cfg and .names)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    from triscale.predict import find_weights
    from triscale.weights.contents import read_names
    from triscale.weights.formats import convert, files_of, lost_in

    source, target = find_weights(Path(arguments.source)), Path(arguments.target)
    if not arguments.force:
        require_new(files_of(target), hint="; --force replaces it")
    weights = convert(
        source,
        target,
        cfg=Path(arguments.cfg) if arguments.cfg else None,
        classes=read_names(Path(arguments.classes)) if arguments.classes else None,
        size=arguments.size,
        fit=arguments.fit,
    )
    print(f"{source}: {weights.describe()}")
    lost = lost_in(target, weights)
    print(f"wrote {target}" + (f"; it has no place for {', '.join(lost)}" if lost else ""))
