"""`triscale check`: what is wrong with a data set, and a mended copy of it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triscale.commands.options import add_set, table
from triscale.commands.train import DEFAULT_RECIPE
from triscale.errors import UserError

if TYPE_CHECKING:
    from triscale.doctor.examine import Report
    from triscale.doctor.mend import Change

HELP = "examine a data set: what is broken, twice there, missing or odd"
_SHOWN = 3  # findings of a kind, changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("data", metavar="DATA", help="folder or file of the data set")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--out", metavar="DIR", help="write check.html and check.json there")
    parser.add_argument(
        "--fix", metavar="OUT", help="write a copy without errors into this new folder"
    )
    parser.add_argument("--strict", action="store_true", help="let warnings count as errors")
    parser.add_argument(
        "--size", metavar="N", help="measure boxes at this input size (default: as train chooses)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    add_set(parser)


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    began = time.perf_counter()
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers: expected at least 0, got {arguments.workers}")
    from triscale.doctor.examine import examine
    from triscale.doctor.findings import count, in_words
    from triscale.doctor.mend import mend, require_new_folder
    from triscale.engines.machine import cores
    from triscale.log import Narrator
    from triscale.recipe import load_recipe

    data, overrides = Path(arguments.data), list(arguments.overrides)
    if arguments.size is not None:
        overrides.append(f"train.size={arguments.size}")
    if arguments.fix:
        require_new_folder(Path(arguments.fix))  # before the long look
    recipe = load_recipe(DEFAULT_RECIPE, overrides=overrides)
    report = examine(
        data,
        recipe,
        base=load_recipe(DEFAULT_RECIPE),
        given=[text.partition("=")[0].strip() for text in overrides],
        workers=cores() if arguments.workers is None else arguments.workers,
        narrator=Narrator(),
    )
    content, changes = report.to_json(), list["Change"]()
    counts = count(report.findings)
    if arguments.fix:
        copy, changes = mend(data, Path(arguments.fix), recipe.data, unreadable=report.unreadable())
        content |= {"copy": str(copy), "changes": [change._asdict() for change in changes]}
    if arguments.out:
        _write(report, content, Path(arguments.out))
    if arguments.json:
        print(json.dumps(content))
    else:
        _print(report)
        print(f"\n{in_words(counts)} ({time.perf_counter() - began:.1f} s)")
        if arguments.out:
            print(f"with pictures: {Path(arguments.out) / 'check.html'}")
        if arguments.fix:
            _print_changes(changes, Path(arguments.fix))
    weights = ("error",) * (not arguments.fix) + ("warning",) * arguments.strict
    failed = {weight: counts[weight] for weight in weights}
    if any(failed.values()):
        hint = "" if arguments.fix else "; --fix OUT writes a copy without errors"
        raise UserError(f"{data}: {in_words(failed)} found{hint * bool(counts['error'])}")


def _write(report: Report, content: dict[str, Any], out: Path) -> None:
    from triscale.doctor.sheet import sheet
    from triscale.files import write_atomically

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "check.json", json.dumps(content, indent=1).encode())
    write_atomically(out / "check.html", sheet(report).encode())


def _print(report: Report) -> None:
    from triscale.doctor.findings import KINDS, grouped
    from triscale.doctor.sheet import short

    print(f"{report.format} data in {report.path}: {len(report.classes)} classes")
    for split in report.splits:
        print(f"{split.role} ({split.name}): {split.pictures} pictures, {split.objects} objects")
    rows = [(name, *map(str, counts)) for name, *counts in report.class_rows()]
    table(("class", *(split.role for split in report.splits)), rows)
    print(f"boxes are measured at an input size of {report.size}")
    for kind, found in grouped(report.findings).items():
        print(f"\n{KINDS[kind].severity}: {KINDS[kind].title} ({len(found)})")
        for finding in found[:_SHOWN]:
            line = finding._replace(path=short(finding.path, report.path)).line()
            print(f"  {line}")
        _print_more(found)
        print(f"  what to do: {KINDS[kind].advice}")


def _print_changes(changes: Sequence[Change], out: Path) -> None:
    print(f"\na copy without errors: {out} ({len(changes)} changes, listed in mended.txt)")
    for change in changes[:_SHOWN]:
        print(f"  {change.line()}")
    _print_more(changes)


def _print_more(found: Sequence[object]) -> None:
    if len(found) > _SHOWN:
        print(f"  and {len(found) - _SHOWN} more")
