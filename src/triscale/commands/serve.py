"""`triscale serve`: a detector behind HTTP, with a page to try it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from triscale.commands.options import add_precision
from triscale.errors import UserError
from triscale.files import read_lines
from triscale.packages import require_packages

HELP = "answer requests over HTTP, with a page to try it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("weights", metavar="WEIGHTS_OR_RUN")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes, each with its own network"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="computed together (default: 8)"
    )
    parser.add_argument(
        "--window",
        type=float,
        default=5.0,
        metavar="MS",
        help="how long a batch waits for pictures on their way (default: 5 ms)",
    )
    parser.add_argument(
        "--queue", type=int, default=64, metavar="N", help="pictures let in (default: 64)"
    )
    parser.add_argument(
        "--max-bytes", type=int, default=20_000_000, metavar="N", help="of a request"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=50_000_000, metavar="N", help="of a picture"
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="of a request (default: 30 s)"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="ask for this token; or the variable TRISCALE_TOKEN"
    )
    parser.add_argument("--score", type=float, default=0.3, metavar="T", help="least score told")
    parser.add_argument("--device", default="auto", metavar="D")
    add_precision(parser)


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    require_packages("starlette", "uvicorn", purpose="triscale serve")
    # OpenCV's own lines about damaged pictures say less than ours; who wants them sets this.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from triscale.serve.server import serve
    from triscale.serve.settings import Settings

    serve(
        Settings(
            weights=arguments.weights,
            host=arguments.host,
            port=arguments.port,
            workers=arguments.workers,
            batch_size=arguments.batch_size,
            window=arguments.window,
            queue=arguments.queue,
            max_bytes=arguments.max_bytes,
            max_pixels=arguments.max_pixels,
            timeout=arguments.timeout,
            token=_token(arguments.token_file),
            score=arguments.score,
            device=arguments.device,
            precision=arguments.precision,
        )
    )


def _token(file: str | None) -> str | None:
    if file is None:
        return os.environ.get("TRISCALE_TOKEN")
    lines = read_lines(Path(file), limit=4096)
    if len(lines) != 1:
        raise UserError(f"{file}: expected one line, the token, found {len(lines)} lines")
    return lines[0].strip()
