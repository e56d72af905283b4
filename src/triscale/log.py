"""What a run says: one JSON object per line in a file, and a view for whoever is watching."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from triscale.files import write_atomically

LOSSES = ("objectness", "centre", "scale", "classes")


class Meter:
    """True means since the last reset: of the losses per step, of images over wall time."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.steps, self.images, self.data_seconds = 0, 0, 0.0
        self._began = time.perf_counter()

    def add(self, *, images: int, data_seconds: float) -> None:
        """Count a step."""
        self.steps += 1
        self.images += images
        self.data_seconds += data_seconds

    def images_per_second(self) -> float:
        """Images since the reset over the time since then."""
        return self.images / max(time.perf_counter() - self._began, 1e-9)


class RunLog:
    """`log.jsonl` of a run folder; a resumed run drops the lines after the state it begins from."""

    def __init__(self, path: Path, *, from_step: int) -> None:
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= from_step]
            write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
        self._path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object; it reaches the file at once."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _step(line: str) -> float:
    """The step of a log line; a line cut short by a crash counts as after everything."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Narrator:
    """Progress: a live bar on a terminal, plain lines elsewhere, nothing if not `enabled`."""

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._enabled = enabled
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._enabled:
            self._console.print(text, markup=False)

    def begin(self, what: str, total: int, *, done: int = 0) -> None:
        """Show a bar of `total` units, `done` of them behind us."""
        self.end()
        if self._enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),  # room for the note on 80 columns
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def advance(self, note: str = "", *, what: str | None = None, amount: float = 1) -> None:
        """Go `amount` units further."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount)
            if note:
                self._bar.update(self._task, note=note)
            if what:
                self._bar.update(self._task, description=what)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
