"""Measuring side by side: contenders in turns, other programs in processes of their own, medians.

A machine's speed drifts, so a figure alone says little: what is compared runs in one call, A B A B,
and the ratio is the median over the pairs. A peer lives in an environment of its own
(`make peers`), is started once and asked over a pipe, so that its start isn't measured and nothing
of it is imported here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from triscale.engines.machine import cores, processor
from triscale.turns import in_turns as in_turns
from triscale.turns import ratio as ratio

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = REPOSITORY / ".peers"  # one environment each: .peers/gluoncv/bin/python
SHARED = REPOSITORY.parent / "shared"  # real pictures and weights, where they are


class Peer:
    """Another program: benchmarks/peers/<name>.py, run by its own Python.

    It reads requests, one JSON object a line with `task` and the task's words, and answers each
    with one object: `{"seconds": .., ...}` or `{"error": ".."}`.
    """

    def __init__(self, name: str, *, threads: int) -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [PEERS / name / "bin" / "python", Path(__file__).parent / "peers" / f"{name}.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.versions: dict[str, str] = self.ask("versions")

    def ask(self, task: str, **words: Any) -> dict[str, Any]:
        """The answer to one request; RuntimeError if the peer can't."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"task": task, **words}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {task}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process: it ends by itself when nothing more can be asked."""
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextmanager
def peers(names: Sequence[str], *, threads: int) -> Generator[dict[str, Peer]]:
    """Those of the peers that are installed; a line on stderr for each that isn't."""
    running: dict[str, Peer] = {}
    try:
        for name in names:
            try:
                running[name] = Peer(name, threads=threads)
            except (OSError, RuntimeError) as error:
                print(f"{name} is left out: {error} (make peers)", file=sys.stderr)
        yield running
    finally:
        for peer in running.values():
            peer.close()


class Report(NamedTuple):
    """What a script found out: a table under a title, with all that is needed to repeat it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str | float, ...]]
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = {}

    def markdown(self) -> str:
        """The table as text."""
        cells = [self.columns, *(tuple(map(_shown, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numeric = [all(isinstance(v, float | int) for v in c) for c in zip(*self.rows, strict=True)]
        rules = tuple(
            "-" * (w - 1) + ("-:"[n] if n else "-") for w, n in zip(widths, numeric, strict=True)
        )
        table = "\n".join(
            "| "
            + " | ".join(
                cell.rjust(w) if n else cell.ljust(w)
                for cell, w, n in zip(row, widths, numeric, strict=True)
            )
            + " |"
            for row in [cells[0], rules, *cells[1:]]
        )
        found = {**self.versions, **machine()}
        facts = f"`{command()}`, {date.today()}; " + ", ".join(f"{k} {v}" for k, v in found.items())
        return "\n\n".join([f"## {self.title}", facts, table, *self.notes])

    def show(self, *, as_json: bool) -> None:
        """Print the table, or one JSON object."""
        if not as_json:
            print(self.markdown())
            return
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        facts = {"command": command(), "date": str(date.today()), "machine": machine()}
        names = {"title": self.title, "notes": self.notes, "versions": dict(self.versions)}
        print(json.dumps({**names, **facts, "rows": rows, "markdown": self.markdown()}))


def arguments(doc: str | None, *, rounds: int, peers: bool = True) -> argparse.ArgumentParser:
    """A parser with the words that every script understands."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="median of so many")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    if peers:
        parser.add_argument("--peers", action="store_true", help="beside the other programs")
    return parser


def command() -> str:
    """The command line as it can be typed again."""
    words = [word for word in sys.argv[1:] if word != "--json"]
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else script
    return shlex.join(["python", str(shown), *words])


def machine() -> dict[str, str]:
    """Processor, cores, load and the versions of what does our work."""
    return {
        "processor": f"{processor()}, {cores()} cores",
        "load": f"{os.getloadavg()[0]:.1f}",
        "torch": version("torch"),
        "opencv": version("opencv-python-headless"),
        "python": platform.python_version(),
    }


def _shown(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
