"""`triscale report`: a run as a page, or several runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "show a run, or compare runs, as a page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; several are compared")
    parser.add_argument(
        "--out", metavar="FILE", help="default: RUN/report.html; of several runs compare.html"
    )
    parser.add_argument(
        "--device", default="auto", metavar="D", help="to measure runs that kept no detections"
    )


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    from triscale.log import Narrator
    from triscale.report.build import NAME, write_report
    from triscale.report.compare import write_comparison
    from triscale.report.measure import read_or_measure

    folders = [Path(folder) for folder in arguments.runs]
    with Narrator() as narrator:
        stories = [
            read_or_measure(folder, device=arguments.device, narrator=narrator)
            for folder in folders
        ]
    if len(stories) == 1:
        out = Path(arguments.out) if arguments.out else folders[0] / NAME
        write_report(stories[0], out)
    else:
        out = Path(arguments.out or "compare.html")
        write_comparison(stories, out)
    print(out)
