"""What of this machine an engine uses."""

from __future__ import annotations

import os


def cores() -> int:
    """How many CPU cores this process may use; not every system can limit a process to some."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
