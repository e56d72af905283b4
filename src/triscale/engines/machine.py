"""What of this machine and its packages an engine uses."""

from __future__ import annotations

import os
from importlib.util import find_spec

from triscale.errors import UserError


def cores() -> int:
    """How many CPU cores this process may use; not every system can limit a process to some.

    OMP_NUM_THREADS, which torch follows by itself, is the most.
    """
    known = hasattr(os, "sched_getaffinity")
    here = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    most = os.environ.get("OMP_NUM_THREADS", "")
    return min(here, int(most)) if most.isdecimal() and int(most) else here


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
