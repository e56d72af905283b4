"""The heap's thresholds, seen from outside: page faults that the system counts."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Ten buffers of 2 MB, one after the other, in a process of its own; prints the page faults.
SCRIPT = """
import resource, sys
from triscale.heap import set_heap
set_heap(map_from=int(sys.argv[1]), trim_from=1 << 30)
bytearray(2_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(2_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_buffers_below_the_threshold_are_kept() -> None:
    mapped, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", SCRIPT, size], check=True, capture_output=True
            ).stdout
        )
        for size in (str(1 << 20), str(16 << 20))
    )
    # bytearray() gets zeroed memory: from the heap that is written by the process itself, so each
    # page costs a fault only where it is new
    assert kept < 100 < mapped, (kept, mapped)
