"""A part of the pictures held out for validation, where a data set has no split for it.

Which pictures are held out is decided by a hash of their ids and nothing else: it is the same in
each run and on each machine, whatever the seed and in whatever order the pictures are listed.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from triscale.data.index import Index

LEAST = 10  # pictures, of which one can be spared


def held_out(index: Index, part: float) -> frozenset[str]:
    """The ids of about `part` of the pictures, at least one; of fewer than LEAST none."""
    ids = sorted(set(index.ids), key=_hash)
    if not part or len(ids) < LEAST:
        return frozenset()
    return frozenset(ids[: max(1, round(part * len(ids)))])


def divide(index: Index, ids: frozenset[str]) -> tuple[Index, Index]:
    """The other pictures of an index, and those with these ids."""
    inside: NDArray[np.bool_] = np.array([name in ids for name in index.ids], np.bool_)
    return index.select(np.flatnonzero(~inside)), index.select(np.flatnonzero(inside))


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
