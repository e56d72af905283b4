"""Pictures that are there twice: the same file, or the same scene in other bytes.

Files are compared by a hash of their content. For what looks the same, each picture has a
perceptual hash of 64 bits: which of the 8 x 8 lowest frequencies of a small grey picture are above
their median (pHash; Zauner, "Implementation and benchmarking of perceptual image hash functions",
2010, section 3.2.1). Equal up to MAX_BITS bits are candidates only: two blue skies have such
hashes. They count if the small pictures themselves agree as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triscale.doctor.findings import Finding
from triscale.doctor.pictures import THUMB, Look

MAX_BITS = 12  # of 64 that may differ
MIN_CORRELATION = 0.96  # of the small pictures
_SIDE = 8  # frequencies each way
_BLOCK = 4096  # pictures that are compared with all others at once


class Pictures(NamedTuple):
    """The readable pictures of all splits, split by split; n of them."""

    paths: Sequence[str]
    splits: Sequence[str]
    looks: Sequence[Look]


def find_duplicates(pictures: Pictures) -> list[Finding]:
    """All copies, exact and near ones, each told once: of the later of two pictures."""
    found, first = list[Finding](), dict[tuple[str, bytes], int]()
    fresh: list[int] = []  # one for each content and split
    listed: set[tuple[str, str]] = set()
    for i, (path, split, look) in enumerate(zip(*pictures, strict=True)):
        if (split, path) in listed:
            found.append(
                Finding("listed-twice", split, path, "", "stands in the split's list twice")
            )
            continue
        listed.add((split, path))
        if (split, look.digest) in first:
            other = pictures.paths[first[split, look.digest]]
            found.append(_finding("copy", pictures, i, other, f"the same file as {_name(other)}"))
            continue
        first[split, look.digest] = i
        before = first.get(("train", look.digest))
        if split != "train" and before is not None:
            other = pictures.paths[before]
            what = f"is in train, too, as {_name(other)}" if other != path else "is in train, too"
            found.append(_finding("leak", pictures, i, other, what))
            continue
        fresh.append(i)
    return [*found, *_near(pictures, fresh)]


def _near(pictures: Pictures, fresh: Sequence[int]) -> list[Finding]:
    """Of each picture its most similar earlier one, in its own split and in train."""
    thumbs = np.array([pictures.looks[i].thumb for i in fresh], np.uint8)
    best: dict[tuple[int, bool], tuple[float, int]] = {}
    for later, earlier, likeness in zip(*similar_pairs(thumbs), strict=True):
        i, j = fresh[later], fresh[earlier]
        key = i, pictures.splits[i] != pictures.splits[j]
        best[key] = max(best.get(key, (0.0, 0)), (likeness, j))
    found: list[Finding] = []
    for (i, across), (likeness, j) in sorted(best.items()):
        other = pictures.paths[j]
        what = f"looks like {_name(other)}" + f" of {pictures.splits[j]}" * across
        kind = "similar-leak" if across else "similar"
        found.append(_finding(kind, pictures, i, other, f"{what} ({likeness:.1%} alike)"))
    return found


def _finding(kind: str, pictures: Pictures, i: int, other: str, what: str) -> Finding:
    path = pictures.paths[i]
    return Finding(kind, pictures.splits[i], path, "", what, picture=path, other=other)


def _name(path: str) -> str:
    """The name of a file; the finding has all of its path."""
    return path.rpartition("/")[2]


def similar_pairs(
    thumbs: NDArray[np.uint8],
) -> tuple[list[int], list[int], list[float]]:
    """(n, THUMB, THUMB) -> the later and the earlier picture of each similar pair, how similar."""
    later, earlier, likeness = list[int](), list[int](), list[float]()
    if not len(thumbs):
        return later, earlier, likeness
    # Rows of +1 and -1: their product counts the bits that agree less those that differ.
    signs = np.where(perceptual_hash(thumbs), 1, -1).astype(np.float32)
    least = signs.shape[1] - 2 * MAX_BITS
    normed = _normed(thumbs)
    for start in range(0, len(signs), _BLOCK):
        stop = min(start + _BLOCK, len(signs))
        i, j = np.nonzero(signs[start:stop] @ signs[:stop].T >= least)
        i += start
        i, j = i[j < i], j[j < i]
        for part in range(0, len(i), _BLOCK):
            rows, columns = i[part : part + _BLOCK], j[part : part + _BLOCK]
            alike = np.einsum("nd,nd->n", normed[rows], normed[columns])
            kept = alike >= MIN_CORRELATION
            later += rows[kept].tolist()
            earlier += columns[kept].tolist()
            likeness += alike[kept].tolist()
    return later, earlier, likeness


def perceptual_hash(thumbs: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(n, THUMB, THUMB) grey -> (n, 64) bits."""
    k, x = np.arange(_SIDE)[:, None], np.arange(THUMB)
    # DCT-II: column x of row k is the k-th cosine
    cosines = np.cos(np.pi * k * (2 * x + 1) / (2 * THUMB)).astype(np.float32)
    frequencies = (cosines @ thumbs.astype(np.float32) @ cosines.T).reshape(len(thumbs), -1)
    return frequencies > np.median(frequencies, axis=1, keepdims=True)


def _normed(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, THUMB, THUMB) -> (n, d) rows whose products are correlations; 0 for a plain picture."""
    rows = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-6)
