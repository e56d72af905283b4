"""What a run says: one JSON object per line in a file, and a view for whoever is watching."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from triscale.errors import UserError
from triscale.files import flush, naming, write_atomically
from triscale.loggers import Loggers

Volume = Literal["quiet", "normal", "verbose"]

LOSSES = ("objectness", "centre", "scale", "classes", "iou")
_STEPS, _SECONDS = 100, 60.0  # that count as recent: so many steps, more if they take less time


class Recent(NamedTuple):
    """The newest steps together."""

    steps: int
    seconds: float
    waited: float  # of the seconds, for data

    @property
    def share(self) -> float:
        """The share of the time without data."""
        return self.waited / max(self.seconds, 1e-9)


class Meter:
    """True means since the last reset: of the losses per step, of images over wall time."""

    def __init__(self) -> None:
        self._newest: deque[tuple[float, float]] = deque()
        self._recent = Recent(0, 0.0, 0.0)  # their sums
        self._ended: float | None = None  # the newest step
        self._pauses, self._resets = 0.0, 0  # from the last step of an epoch to its reset
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self._began = time.perf_counter()
        if self._ended is not None:
            self._pauses += self._began - self._ended
            self._resets += 1
            self._ended = self._began
        self.steps, self.images, self.data_seconds = 0, 0, 0.0
        self._losses: list[float] = []
        self._seen = 0

    def add(self, *, images: int, data_seconds: float) -> None:
        """Count a step."""
        now = time.perf_counter()
        if self._ended is not None:  # the first one waits for the loading processes to start
            self._keep(now - self._ended, data_seconds)
        self._ended = now
        self.steps += 1
        self.images += images
        self.data_seconds += data_seconds

    def _keep(self, seconds: float, waited: float) -> None:
        """Count a step as recent, and those no longer that have become old."""
        self._newest.append((seconds, waited))
        steps, total, lost = self._recent
        steps, total, lost = steps + 1, total + seconds, lost + waited
        while steps > _STEPS and total - self._newest[0][0] >= _SECONDS:
            old = self._newest.popleft()
            steps, total, lost = steps - 1, total - old[0], lost - old[1]
        self._recent = Recent(steps, total, lost)

    def see(self, losses: Sequence[float]) -> None:
        """Take in the losses of a step; those that aren't finite don't count."""
        if math.isfinite(sum(losses)):
            so_far = self._losses or [0.0] * len(losses)
            self._losses = [a + b for a, b in zip(so_far, losses, strict=True)]
            self._seen += 1

    def losses(self) -> list[float]:
        """The mean of each loss; empty before the first."""
        return [total / self._seen for total in self._losses]

    def images_per_second(self) -> float:
        """Images since the reset over the time since then."""
        return self.images / max(time.perf_counter() - self._began, 1e-9)

    def recent(self) -> Recent:
        """The newest 100 steps, or those of the last minute if these are more.

        Also those before the reset, without what lies between epochs.
        """
        return self._recent

    def seconds_left(self, *, steps: int, epochs: int) -> float:
        """How long so many steps and ends of epochs will take; nan before the second step."""
        recent = self.recent()
        pace = recent.seconds / recent.steps if recent.steps else math.nan
        return steps * pace + epochs * (self._pauses / self._resets if self._resets else 0.0)


class RunLog:
    """`log.jsonl` of a run folder, known by its length and SHA-256 up to each state."""

    def __init__(
        self,
        path: Path,
        *,
        mark: Mapping[str, Any] | None = None,
        accept: bool = False,
        loggers: Loggers | None = None,
    ) -> None:
        """Begin anew, or go on after what `mark`, which `flush` gave, stands for.

        What comes after it is dropped. If it isn't there any more that is a UserError, or with
        `accept` what is there is moved out of the way. `loggers` are told what the file is.
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
        self._loggers = loggers
        if loggers:
            history = [json.loads(line) for line in content.splitlines()]
            loggers.begin(history, anew=mark is None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object; it reaches the file at once."""
        line = (json.dumps(record) + "\n").encode()
        with naming(self._path), self._path.open("ab") as file:
            file.write(line)
        self._bytes += len(line)
        self._sha256.update(line)
        if self._loggers:
            self._loggers.write(record)

    def flush(self) -> dict[str, Any]:
        """Wait until the disk has it, before a state counts on it; a mark to go on from."""
        flush(self._path)
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


class _Left(ProgressColumn):
    """The time that is left: as it was said, or as the bar finds it."""

    def render(self, task: Task) -> Text:
        said: float | None = task.fields["left"]
        left = task.time_remaining if said is None else said
        return Text(f"{duration(left)} left", style="progress.remaining")


class _View(Progress):
    """Bars, the newest on top, with lines below them."""

    lines: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """What stands at the end of the screen; rich asks for it some times a second."""
        yield self.make_tasks_table(self.tasks[::-1])
        for line in self.lines:
            yield Text(line, no_wrap=True, overflow="ellipsis")


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, or dashes if they aren't known."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Narrator:
    """Progress: a live view on a terminal, plain lines elsewhere, nothing if not `enabled`.

    `quiet` leaves warnings and the last line of a command, `verbose` adds a line for each step.
    """

    def __init__(
        self, *, enabled: bool = True, stream: TextIO | None = None, volume: Volume = "normal"
    ) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._enabled, self._volume = enabled, volume
        self._view: _View | None = None
        self._whole: TaskID | None = None
        self._part: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def live(self) -> bool:
        """Whether there is a live view now."""
        return self._view is not None

    @property
    def verbose(self) -> bool:
        """Whether each step is to be told."""
        return self._enabled and self._volume == "verbose"

    def say(self, text: str) -> None:
        """Print a line, above the view if there is one."""
        if self._volume != "quiet":
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning, also when quiet."""
        self._print(f"warning: {text}", style="yellow")

    def conclude(self, text: str) -> None:
        """Print the line that a command ends with, also when quiet."""
        self._print(text)

    def begin(self, what: str, total: int, *, done: int = 0) -> None:
        """Show a bar of `total` units, `done` of them behind us."""
        self.end()
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        if self._enabled and self._volume != "quiet" and terminal:
            self._view = _View(
                TextColumn("{task.description}"),
                BarColumn(bar_width=max(10, min(40, self._console.width - 50))),
                TextColumn("{task.completed:.0f}/{task.total:.0f}", justify="right"),
                _Left(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
            )
            self._whole = self._view.add_task(what, total=total, completed=done, note="", left=None)
            self._view.start()

    def advance(self, note: str = "", *, what: str | None = None, amount: float = 1) -> None:
        """Go `amount` units further."""
        if self._view is not None and self._whole is not None:
            self._view.update(self._whole, advance=amount)
            if note:
                self._view.update(self._whole, note=note)
            if what:
                self._view.update(self._whole, description=what)

    def part(self, what: str, done: int, total: int) -> None:
        """Show a second bar, above the first, for the part `what` of the whole."""
        if self._view is None:
            return
        if self._part is None:
            self._part = self._view.add_task("", note="", left=None)
        if self._view.tasks[-1].description != what:  # a clock of its own
            self._view.reset(self._part, total=total, completed=done, description=what)
        self._view.update(self._part, completed=done)

    def show(self, lines: Sequence[str], *, left: float) -> None:
        """Put these lines below the bars, and how many seconds are left of the whole."""
        if self._view is not None and self._whole is not None:
            self._view.lines = lines
            self._view.update(self._whole, left=left)

    def end(self) -> None:
        """Remove the view."""
        if self._view is not None:
            self._view.stop()
            self._view = self._part = None

    def _print(self, text: str, *, style: str | None = None) -> None:
        if self._enabled:
            # lines for a program stay whole; those above a view break between words
            self._console.print(text, markup=False, style=style, soft_wrap=not self.live)
