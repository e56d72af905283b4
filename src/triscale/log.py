"""What a run says: one JSON object per line in a file, and a view for whoever is watching."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from triscale.errors import UserError
from triscale.files import flush, naming, write_atomically

LOSSES = ("objectness", "centre", "scale", "classes", "iou")


class Meter:
    """True means since the last reset: of the losses per step, of images over wall time."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.steps, self.images, self.data_seconds = 0, 0, 0.0
        self._losses, self._seen = 0.0, 0
        self._began = time.perf_counter()

    def add(self, *, images: int, data_seconds: float) -> None:
        """Count a step."""
        self.steps += 1
        self.images += images
        self.data_seconds += data_seconds

    def see(self, losses: Sequence[float]) -> None:
        """Take in the losses of a step; those that aren't finite don't count."""
        total = sum(losses)
        if math.isfinite(total):
            self._losses += total
            self._seen += 1

    def loss(self) -> float:
        """The mean total loss; nan before the first."""
        return self._losses / self._seen if self._seen else math.nan

    def images_per_second(self) -> float:
        """Images since the reset over the time since then."""
        return self.images / max(time.perf_counter() - self._began, 1e-9)


class RunLog:
    """`log.jsonl` of a run folder, known by its length and SHA-256 up to each state."""

    def __init__(
        self, path: Path, *, mark: Mapping[str, Any] | None = None, accept: bool = False
    ) -> None:
        """Begin anew, or go on after what `mark`, which `flush` gave, stands for.

        What comes after it is dropped. If it isn't there any more that is a UserError, or with
        `accept` what is there is moved out of the way.
        """
        content = b""
        if mark:
            content = path.read_bytes()[: mark["bytes"]] if path.is_file() else b""
            if hashlib.sha256(content).hexdigest() != mark["sha256"]:
                if not accept:
                    raise UserError(
                        f"{path}: damaged or gone (its first {mark['bytes']} bytes aren't those "
                        "that were logged); with --set checkpoint.accept_changes=true a new log "
                        "is begun"
                    )
                content = b""
                if path.is_file():
                    path.replace(path.with_name(f"damaged-{path.name}"))
        write_atomically(path, content)
        self._path, self._bytes, self._sha256 = path, len(content), hashlib.sha256(content)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object; it reaches the file at once."""
        line = (json.dumps(record) + "\n").encode()
        with naming(self._path), self._path.open("ab") as file:
            file.write(line)
        self._bytes += len(line)
        self._sha256.update(line)

    def flush(self) -> dict[str, Any]:
        """Wait until the disk has it, before a state counts on it; a mark to go on from."""
        flush(self._path)
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


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
