"""`triscale export`: a detector for other programs, proven to find what the network finds."""

from __future__ import annotations

import argparse
import re
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from triscale.commands.options import add_volume, require_new, sides, table
from triscale.errors import UserError
from triscale.packages import require_packages

if TYPE_CHECKING:
    from triscale.export.compare import Outcome

HELP = "write a detector for other programs: ONNX, OpenVINO or torch.export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("weights", metavar="WEIGHTS_OR_RUN")
    parser.add_argument("target", metavar="OUT", help="FILE.onnx, FILE.pt2 or FOLDER_openvino")
    parser.add_argument(
        "--size", metavar="N|HxW|dynamic", help="of the network input (default: as the weights say)"
    )
    parser.add_argument(
        "--batch", metavar="N|dynamic", default="dynamic", help="pictures at once (default: any)"
    )
    parser.add_argument(
        "--resize", action="store_true", help="pictures of any size go in and are resized inside"
    )
    parser.add_argument("--raw", action="store_true", help="the network's own outputs, not decoded")
    parser.add_argument("--half", action="store_true", help="compute in half precision")
    parser.add_argument(
        "--int8", action="store_true", help="convolutions in 8 bits; needs --calibrate"
    )
    parser.add_argument("--calibrate", metavar="DATA", help="training pictures for --int8")
    parser.add_argument(
        "--check", metavar="DATA", help="compare on its validation pictures, with the mAP of both"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT")
    add_volume(parser)


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    target = Path(arguments.target)
    if not arguments.force:
        require_new([target], hint="; --force replaces it")
    if arguments.int8 and not arguments.calibrate:
        raise UserError("--int8: name a data set with --calibrate, its training pictures are used")
    if arguments.calibrate and not arguments.int8:
        raise UserError("--calibrate: is for --int8, which wasn't asked for")
    require_packages("torch", purpose="triscale export", extra="export")
    from triscale.export.write import Wanted, export
    from triscale.log import Narrator

    size = _size(arguments.size)
    wanted = Wanted(
        size=None if size == "dynamic" else size,
        dynamic=size == "dynamic",
        batch=_batch(arguments.batch),
        resize=arguments.resize,
        raw=arguments.raw,
        half=arguments.half,
        calibrate=Path(arguments.calibrate) if arguments.int8 else None,
        check=Path(arguments.check) if arguments.check else None,
    )
    show = _show if arguments.volume != "quiet" else None
    with Narrator(volume=arguments.volume) as narrator:
        export(Path(arguments.weights), target, wanted, narrator=narrator, show=show)
    print(f"wrote {target}")


def _show(outcome: Outcome) -> None:
    """Print how what was written compares with the network."""
    rows = [
        (what, f"{found:.4g}", f"{most:.4g}" if most < inf else "-")
        for what, found, most in outcome.rows
    ]
    table(("", "found", "allowed"), rows)
    print(
        f"compared {outcome.detections} detections in {outcome.pictures} pictures ({outcome.words})"
    )
    if outcome.means:
        print("mAP {:.4f} of the network, {:.4f} of the file".format(*outcome.means))


def _size(text: str | None) -> tuple[int, int] | Literal["dynamic"] | None:
    """(height, width), "dynamic", or None for what the weights say."""
    if text is None:
        return None
    if text == "dynamic":
        return "dynamic"
    return sides(text, expected="N, HxW or dynamic")


def _batch(text: str) -> int | None:
    """A number of pictures, None for any."""
    if text == "dynamic":
        return None
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise UserError(f"--batch: expected 1 to 9999 or dynamic, got '{text}'")
    return int(text)
