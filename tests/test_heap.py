"""The heap's thresholds, seen from outside: the memory that the system says a process holds."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

# Ten buffers of 2 MB, freed again, in a process of its own; prints by how many pages it has grown.
SCRIPT = """
import sys
from pathlib import Path
from triscale.heap import set_heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

set_heap(map_from=None, trim_from=None)  # as a training process that forks
set_heap(map_from=int(sys.argv[1]), trim_from=1 << 30)
before = resident()
held = [b"x" * 2_000_000 for _ in range(10)]
del held
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_buffers_below_the_threshold_are_kept() -> None:
    mapped, kept = (
        int(subprocess.check_output([sys.executable, "-c", SCRIPT, size])) * resource.getpagesize()
        for size in (str(1 << 20), str(16 << 20))
    )
    assert mapped < 5e6, (kept, mapped)
    assert kept > 19e6, (kept, mapped)
