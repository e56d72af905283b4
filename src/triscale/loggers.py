"""Copies of a run's records for TensorBoard, Weights & Biases and MLflow, beside `log.jsonl`.

`log.jsonl` is the truth; these are for people who have such a program. None is imported before it
is asked for, and none can end a run: one that fails is switched off, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from triscale.adaptors import Logger, MLflow, Record, TensorBoard, WandB, scalars
from triscale.errors import UserError
from triscale.packages import require_packages

_KINDS: dict[str, Callable[[Path, Record], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


@dataclass(frozen=True)
class LogConfig:
    """The `[log]` section."""

    to: tuple[str, ...] = ()  # tensorboard, wandb, mlflow; log.jsonl is always written

    def __post_init__(self) -> None:
        for name in self.to:
            if name not in _KINDS:
                raise UserError(f"log.to: expected {', '.join(_KINDS)}, got '{name}'")

    def require_installed(self) -> None:
        """UserError if a package is missing; none is imported."""
        for name in self.to:
            require_packages(name, purpose="log.to")


class Loggers:
    """Those that a run asked for. What is said to them is said to each that still works."""

    def __init__(
        self, config: LogConfig, folder: Path, *, recipe: Record, warn: Callable[[str], None]
    ) -> None:
        self._warn, self._begun = warn, False
        self._open = {name: _KINDS[name](folder, recipe) for name in config.to}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._begun:
            self._each(lambda logger: logger.end(done=error is None))

    def begin(self, history: Sequence[Record], *, anew: bool) -> None:
        """The log is this now, and what comes is written after it."""
        self._begun = True
        self._each(lambda logger: logger.begin(history, anew=anew))

    def write(self, record: Record) -> None:
        """A record of the log."""
        if values := scalars(record):
            self._each(lambda logger: logger.write(record["step"], values))

    def pictures(self, step: int, paths: Sequence[Path]) -> None:
        """Pictures of a validation."""
        self._each(lambda logger: logger.pictures(step, paths))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            try:
                call(logger)
            except Exception as error:  # theirs may be of any kind
                del self._open[name]
                what = next(iter(str(error).splitlines()), "") or type(error).__name__
                self._warn(f"{name} is switched off, the run goes on: {what:.200}")
