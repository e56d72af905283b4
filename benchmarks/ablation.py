"""What does each trick of a recipe bring, added to the plain one, taken from the full one?

    python benchmarks/ablation.py tricks.toml --data DATA --train train --val val --jobs 2

A trick is a name with the keys that it sets; `recipe` has none of them, the full one all:

    recipe = "small"
    set = ["train.epochs=20"]             # of every run
    [tricks]
    "EMA" = ["optim.ema=0.9998"]
    "CIoU" = ["loss.iou_gain=2"]

Every variant is trained with the same seeds, `--jobs` at a time, each in a process of its own. A
finished run is a line of `--results`: called again, the script goes on with what is left. Another
table may use the same file: a run is known by its keys, not by the name of its variant. But it
isn't known by the program's code: when that changes, take a new file.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accuracy import (
    FIGURES,
    OURS,
    Record,
    Task,
    finished,
    line,
    mean_and_spread,
    our_settings,
    ours,
    task_of,
    task_parser,
)
from harness import Report

DIRECTIONS = ("added", "removed")


class Table(NamedTuple):
    """What the TOML file says."""

    recipe: str
    common: tuple[str, ...]  # section.key=value, of every run
    tricks: dict[str, tuple[str, ...]]


class Variant(NamedTuple):
    """A line of the result."""

    name: str
    overrides: tuple[str, ...]
    against: str  # the variant that it is compared with; empty: none


def main() -> None:
    """Print the table."""
    parser = task_parser(__doc__)
    add = parser.add_argument
    add("tricks", type=Path, help="the TOML file")
    add("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    add("--jobs", type=int, default=1, help="so many runs at a time")
    add("--by", choices=[key for _, key in FIGURES], default="AP", help="what is compared")
    add("--results", type=Path, default=Path("runs/ablation.jsonl"), help="finished runs")
    add("--json", action="store_true", help="one JSON object instead of the table")
    words = parser.parse_args()
    table = read_table(words.tricks)
    variants = list(variants_of(table, words.directions))
    tasks = {v.name: task_of(words, table.recipe, v.overrides) for v in variants}
    found = train_all(tasks, words.seeds, path=words.results, jobs=words.jobs)
    report(variants, found, words.by).show(as_json=words.json)


def read_table(path: Path) -> Table:
    """The file's content, or the end of the program with what is wrong in it."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")
    if unknown := sorted(set(content) - {"recipe", "set", "tricks"}):
        sys.exit(f"{path}: expected recipe, set and [tricks], found {unknown[0]}")
    if not isinstance(content.get("recipe"), str):
        sys.exit(f"{path}: recipe: expected the name or file of the plain one")
    lists: dict[str, Any] = {"": content.get("set", []), **content.get("tricks", {})}
    for name, keys in lists.items():
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            where = f"tricks.{name}" if name else "set"
            sys.exit(f"{path}: {where}: expected a list of 'section.key=value', found {keys!r}")
    chosen = {name: tuple(keys) for name, keys in lists.items()}
    return Table(content["recipe"], chosen.pop(""), chosen)


def variants_of(table: Table, directions: Sequence[str]) -> Iterator[Variant]:
    """The plain recipe, each trick added to it; the full one, each trick taken from it."""

    def keys(*names: str) -> tuple[str, ...]:
        return (*table.common, *(key for name in names for key in table.tricks[name]))

    yield Variant("plain", keys(), "")
    if "added" in directions:
        yield from (Variant(f"+ {name}", keys(name), "plain") for name in table.tricks)
    if "removed" in directions and table.tricks:
        yield Variant("full", keys(*table.tricks), "plain")
        for name in table.tricks:
            rest = (other for other in table.tricks if other != name)
            yield Variant(f"- {name}", keys(*rest), "full")


def train_all(
    tasks: Mapping[str, Task], seeds: Sequence[int], *, path: Path, jobs: int
) -> dict[str, dict[int, Record]]:
    """The runs of each variant by seed; one that fails is named and left out."""
    found: dict[str, dict[int, Record]] = {name: {} for name in tasks}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            # All variants with the first seed come first: half an evening leaves a table, too. Two
            # variants may be the same.
            waiting = {
                key: pool.submit(train, key[0], key[1], path)
                for key in dict.fromkeys((task, seed) for seed in seeds for task in tasks.values())
            }
            for seed in seeds:
                for name, task in tasks.items():
                    try:
                        record = waiting[task, seed].result()
                    except RuntimeError as error:
                        print(f"{name}, seed {seed}: {error}", file=sys.stderr)
                        continue
                    print(f"{name}, seed {seed}: {line(record)}", file=sys.stderr)
                    found[name][seed] = record["result"]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def train(task: Task, seed: int, path: Path) -> Record:
    """One run, or what the file says about it."""
    return finished(path, OURS, seed, settings=our_settings(task), run=partial(ours, task))


def report(variants: Sequence[Variant], found: dict[str, dict[int, Record]], by: str) -> Report:
    """A row for each variant, in which differences are between runs of the same seed."""
    (compared,) = (name for name, key in FIGURES if key == by)
    rows: list[tuple[str | float, ...]] = []
    for name, _, against in variants:
        mine, theirs = found[name], found.get(against, {})
        differences = [mine[seed][by] - theirs[seed][by] for seed in mine if seed in theirs]
        rows.append(
            (
                name,
                *(mean_and_spread([each[key] for each in mine.values()]) for _, key in FIGURES),
                mean_and_spread([each["seconds"] for each in mine.values()], scale=1),
                mean_and_spread(differences, sign="+") + f" ({against})" * bool(differences),
            )
        )
    seeds = sorted({seed for each in found.values() for seed in each})
    notes = (
        f"Seeds {', '.join(map(str, seeds))}: mean ± sample standard deviation. Differences are "
        "those of runs with the same seed.",
    )
    names = ("variant", *(name for name, _ in FIGURES), "training, s")
    return Report("What each trick brings", (*names, f"difference in {compared}"), rows, notes)


if __name__ == "__main__":
    main()
