"""`triscale predict`: detections as drawings, lines, JSON, COCO results or YOLO files."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from triscale.commands.options import add_precision, require_new
from triscale.errors import UserError

if TYPE_CHECKING:
    from triscale.outputs import Output
    from triscale.predict import Detector
    from triscale.sources import Shot, Source

HELP = "find objects in pictures, videos and cameras"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("weights", metavar="WEIGHTS_OR_RUN", help="a run folder: its best")
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="pictures, videos, folders, patterns, camera:0, rtsp://...",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="for drawings (default: predictions, if nothing else is asked)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    parser.add_argument("--coco", metavar="FILE", help="write COCO results")
    parser.add_argument("--yolo", metavar="DIR", help="write a YOLO text file per picture")
    parser.add_argument("--score", type=float, default=0.3, metavar="T", help="least score shown")
    parser.add_argument("--labels", metavar="A,B", help="only these classes")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="of videos each N-th frame (default: 1)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="computed together (default: 4; live: 1)"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, cuda:N or auto")
    add_precision(parser)


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    _check(arguments)
    # FFmpeg's and OpenCV's own lines say less than ours; who wants them sets these.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from triscale.detections import label_numbers
    from triscale.interrupt import stop_requests
    from triscale.log import Narrator
    from triscale.predict import Detector, is_exported
    from triscale.sources import count_shots, find_sources, read_shots

    sources = find_sources(arguments.sources)
    detector = Detector(arguments.weights, device=arguments.device, precision=arguments.precision)
    labels = None
    if arguments.labels:
        labels = label_numbers(arguments.labels.split(","), detector.classes)
    total = count_shots(sources, every=arguments.every)
    unread: list[UserError] = []

    with stop_requests() as stopping, ExitStack() as stack:
        # Each is entered before the next is made, so that none is left open if one can't be.
        outputs = [stack.enter_context(closing(o)) for o in _outputs(arguments, sources, detector)]
        narrator = stack.enter_context(Narrator())

        def failed(error: UserError) -> None:
            unread.append(error)
            if len(sources) > 1:
                narrator.say(f"triscale: {error}")

        def warn(text: str) -> None:
            narrator.say(f"triscale: warning: {text}")

        shots = stack.enter_context(
            closing(read_shots(sources, every=arguments.every, failed=failed, warn=warn))
        )
        if is_exported(detector.path):
            narrator.say(f"triscale: {detector.engine.name}")
        if total is None:
            narrator.say("triscale: Ctrl-C ends this")
        elif total > 1:
            narrator.begin("predict", total)
        began, done = time.monotonic(), 0
        for group in _groups(shots, arguments.batch_size or (4 if total is not None else 1)):
            for shot, found in zip(group, detector.batch([s.image for s in group]), strict=True):
                kept = found.filter(arguments.score, labels=labels)
                for output in outputs:
                    output.add(shot, kept)
            done += len(group)
            rate = done / (time.monotonic() - began)
            narrator.advance(f"{rate:.1f}/s", amount=len(group))
            if stopping():
                break
    if done and not arguments.json:
        print("\n".join(line for output in outputs if (line := output.summary())))
    if stopping():
        narrator.say(f"triscale: what was found in {done} pictures and frames is written")
        raise KeyboardInterrupt
    if len(sources) == 1 and unread:
        raise unread[0]
    if unread:
        raise UserError(
            f"{len(unread)} of {len(sources)} sources couldn't be read; "
            "what was found in the others is written"
        )


def _check(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.score <= 1:
        raise UserError(f"--score: expected between 0 and 1, got {arguments.score}")
    for flag, value in (("--every", arguments.every), ("--batch-size", arguments.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{flag}: expected at least 1, got {value}")


def _outputs(
    arguments: argparse.Namespace, sources: list[Source], detector: Detector
) -> Iterator[Output]:
    """What was asked for; drawings and a table if nothing was."""
    from triscale.outputs import (
        CocoResults,
        Drawings,
        JsonLines,
        Table,
        YoloFiles,
        coco_pictures_path,
    )

    if arguments.out or not (arguments.json or arguments.coco or arguments.yolo):
        yield Drawings(Path(arguments.out or "predictions"), sources)
    if arguments.yolo:
        yield YoloFiles(Path(arguments.yolo), detector.classes)
    if arguments.coco:
        path = Path(arguments.coco)
        require_new([path, coco_pictures_path(path)])
        yield CocoResults(path, sources, detector.classes)
    # A live bar catches what is printed, to show it above itself: right on a terminal, wrong for a
    # file or a pipe.
    stdout = None if sys.stdout and sys.stdout.isatty() else sys.stdout
    if arguments.json:
        yield JsonLines(lambda line: print(line, file=stdout, flush=True))
    else:
        yield Table(lambda line: print(line, file=stdout), sources, detector.classes)


def _groups(shots: Iterator[Shot], size: int) -> Iterator[list[Shot]]:
    while group := list(islice(shots, size)):
        yield group
