"""What several commands share: flags, a table, a check before anything is written."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from triscale.errors import UserError


def add_precision(parser: argparse.ArgumentParser) -> None:
    """--precision, for the commands that run a network."""
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "auto"],
        default="fp32",
        help="what the network computes in; auto: bf16 if it is faster here (default: fp32)",
    )


def add_set(parser: argparse.ArgumentParser) -> None:
    """--set, for the commands that follow a recipe."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="section.key=value",
        help="change one key of the recipe; may be given often",
    )


def add_volume(parser: argparse.ArgumentParser) -> None:
    """--quiet, for the commands that tell how far they are; `volume` in the arguments."""
    parser.add_argument(
        "--quiet",
        action="store_const",
        const="quiet",
        default="normal",
        dest="volume",
        help="only warnings, errors and the last line",
    )


def sides(text: str, *, expected: str = "N or HxW") -> tuple[int, int]:
    """(height, width) that --size says; `expected` is all that it may say."""
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not found:
        raise UserError(f"--size: expected {expected}, got '{text}'")
    return int(found[1]), int(found[2] or found[1])


def require_new(paths: Sequence[Path], *, hint: str = "") -> None:
    """UserError if one of the files that are going to be written is there."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path}: is there already{hint}")


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns, as wide as they need."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
