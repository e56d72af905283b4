"""`triscale download`: weights that GluonCV published."""

from __future__ import annotations

import argparse
from pathlib import Path

from triscale.commands.options import require_new

HELP = "get weights that GluonCV published"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("name", metavar="NAME", help="as in yolo3_darknet53_coco, or: list")
    parser.add_argument("--mirror", metavar="URL", help="a copy of GluonCV's repository")
    parser.add_argument("--to", metavar="FILE", help="also write it here, in any format")


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    from triscale.weights.zoo import ZOO

    if arguments.name == "list":
        print("\n".join(ZOO))
        return
    from triscale.log import Narrator
    from triscale.weights.formats import convert, fetch, files_of, writer_of

    target = Path(arguments.to) if arguments.to else None
    if target:
        writer_of(target)  # before the long download
        require_new(files_of(target))
    with Narrator() as narrator:
        path = fetch(arguments.name, narrator=narrator, mirror=arguments.mirror)
    if target:
        convert(path, target)
    print(target or path)
