"""What of this machine and its packages an engine uses."""

from __future__ import annotations

import os
import platform
import re
from importlib.util import find_spec
from pathlib import Path

from triscale.errors import UserError


def cores() -> int:
    """How many CPU cores this process may use; not every system can limit a process to some."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def processor() -> str:
    """What the processor is called."""
    known = Path("/proc/cpuinfo")
    found = known.is_file() and re.search(r"model name\s*: (.*)", known.read_text("utf-8"))
    return found[1] if found else platform.processor() or platform.machine()


def is_here(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


def require_packages(*packages: str, purpose: str) -> None:
    """UserError with the command that installs them if one of the packages is missing."""
    missing = [package for package in packages if not is_here(package)]
    if missing:
        raise UserError(
            f"{purpose} needs {' and '.join(missing)}, not installed here: "
            f"pip install {' '.join(missing)}"
        )
