"""What of this machine an engine uses."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def cores() -> int:
    """How many CPU cores this process may use; not every system can limit a process to some."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def num_threads() -> int:
    """How many threads compute: one a core, at most OMP_NUM_THREADS, which torch follows too."""
    most = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(most)) if most.isdecimal() and int(most) else cores()


def processor() -> str:
    """What the processor is called."""
    known = Path("/proc/cpuinfo")
    found = known.is_file() and re.search(r"model name\s*: (.*)", known.read_text("utf-8"))
    return found[1] if found else platform.processor() or platform.machine()
