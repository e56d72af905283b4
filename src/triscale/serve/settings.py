"""What the server is told, and what it tells a client whose request it can't serve."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from triscale.errors import UserError


@dataclass(frozen=True)
class Settings:
    """The flags of `triscale serve`."""

    weights: str
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1  # processes, each with its own network
    batch_size: int = 8
    window: float = 5.0  # ms that a batch waits for pictures that are on their way
    queue: int = 64  # pictures
    max_bytes: int = 20_000_000  # of a request's body
    max_pixels: int = 50_000_000  # of a picture
    timeout: float = 30.0  # s
    token: str | None = field(default=None, repr=False)
    score: float = 0.3
    device: str = "auto"
    precision: Literal["fp32", "bf16", "auto"] = "fp32"

    def __post_init__(self) -> None:
        for name in ("workers", "batch_size", "queue", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise UserError(f"{_flag(name)}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port: expected 0 to 65535, got {self.port}")
        if not 0 <= self.window <= 1000:
            raise UserError(f"--window: expected 0 to 1000 milliseconds, got {self.window}")
        if not 0 < self.timeout < math.inf:
            raise UserError(f"--timeout: expected seconds above 0, got {self.timeout}")
        if not 0 <= self.score <= 1:
            raise UserError(f"--score: expected between 0 and 1, got {self.score}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise UserError("the token: expected printable ASCII characters only")
        if self.token is not None and (not self.token or " " in self.token):
            raise UserError("the token: expected at least one character, and no spaces")

    @property
    def held_bytes(self) -> int:
        """The most bytes of bodies that are held at a time, of all requests together."""
        return 8 * self.max_bytes


class RefusedError(Exception):
    """A request that isn't served; `str(error)` is a sentence for its sender."""

    def __init__(self, status: int, text: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers or {}


def busy(text: str) -> RefusedError:
    """What is worth another try."""
    return RefusedError(503, text, headers={"Retry-After": "1"})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
