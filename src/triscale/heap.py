"""When memory that was freed goes back to the system: thresholds of glibc's heap, mallopt(3).

By itself glibc adapts them to what it sees, which suits neither a training step nor a process that
decodes pictures. They belong to the process, and processes that are forked inherit them.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
MOST_MAPPED = 65536  # buffers: glibc's own limit
_NEVER = -1


def set_heap(*, map_from: int | None, trim_from: int | None) -> None:
    """Buffers of `map_from` bytes are mapped, and given back when they are freed; of the others
    that are free at the heap's end only what is beyond `trim_from` bytes. None: never, and what was
    taken stays. Elsewhere than with glibc nothing happens."""
    with suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0 if map_from is None else MOST_MAPPED)
        if map_from is not None:
            libc.mallopt(_M_MMAP_THRESHOLD, map_from)  # 32 MiB at most
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER if trim_from is None else trim_from)
