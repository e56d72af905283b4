"""Copies and near copies; the hash is compared with OpenCV's cosine transform."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.doctor.sets import picture
from triscale.doctor.duplicates import Pictures, find_duplicates, perceptual_hash, similar_pairs
from triscale.doctor.pictures import THUMB, Look


def thumb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    small = cv2.resize(image, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)


def compressed(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def test_hash_against_opencv() -> None:
    thumbs = np.array([thumb(picture(name)) for name in "abcdef"])
    for bits, image in zip(perceptual_hash(thumbs), thumbs, strict=True):
        lowest = cv2.dct(image.astype(np.float32))[:8, :8]
        # OpenCV's transform is orthonormal: the first row and column are smaller by a root of two
        lowest[0] *= np.sqrt(2)
        lowest[:, 0] *= np.sqrt(2)
        assert np.array_equal(bits.reshape(8, 8), lowest > np.median(lowest))


def test_pairs() -> None:
    assert similar_pairs(np.zeros((0, THUMB, THUMB), np.uint8)) == ([], [], [])
    plain = np.full((2, THUMB, THUMB), 7, np.uint8)
    assert similar_pairs(plain) == ([], [], [])  # nothing to be alike in
    first, other = picture("a"), picture("b")
    changed = [
        first,
        other,
        compressed(first, 20),
        cv2.resize(first, None, fx=0.4, fy=0.4),
        cv2.convertScaleAbs(first, alpha=0.9, beta=10),
        first[:, ::-1],
    ]
    later, earlier, likeness = similar_pairs(np.array([thumb(np.asarray(c)) for c in changed]))
    assert sorted(zip(later, earlier, strict=True)) == [
        *((2, 0), (3, 0), (3, 2), (4, 0), (4, 2), (4, 3))
    ]
    assert min(likeness) > 0.98


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ("", []),
        ("train/a train/b val/c", []),
        ("train/a train/A", [("copy", "train/A", "train/a")]),
        ("train/a val/A", [("leak", "val/A", "train/a")]),
        ("train/a train/a", [("listed-twice", "train/a", "")]),
        ("val/a val/A", [("copy", "val/A", "val/a")]),
        # each is told once, by what weighs most
        ("train/a train/A val/A", [("copy", "train/A", "train/a"), ("leak", "val/A", "train/a")]),
        ("train/a val/A val/A2", [("leak", "val/A", "train/a"), ("copy", "val/A2", "val/A")]),
        ("train/a train/a~", [("similar", "train/a~", "train/a")]),
        ("train/a val/a~", [("similar-leak", "val/a~", "train/a")]),
    ],
)
def test_copies(places: str, expected: list[tuple[str, str, str]]) -> None:
    """The first letter is the content, `~` the same once more in other bytes."""
    looks: list[Look] = []
    for place in places.split():
        name = place.split("/")[1]
        image = picture(name[0].lower())
        image = compressed(image, 30) if "~" in name else image
        content = name[0].lower() + "~" * ("~" in name)
        looks.append(Look(digest=content.encode(), thumb=thumb(image)))
    pictures = Pictures(places.split(), [p.split("/")[0] for p in places.split()], looks)
    found = [(f.kind, f.path, f.other) for f in find_duplicates(pictures)]
    assert found == expected


def test_more_pictures_than_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    thumbs = np.array([thumb(compressed(picture(n), q)) for n in "abcab" for q in (90, 50)])
    whole = similar_pairs(thumbs)
    monkeypatch.setattr("triscale.doctor.duplicates._BLOCK", 3)
    assert sorted(zip(*similar_pairs(thumbs), strict=True)) == sorted(zip(*whole, strict=True))
    assert len(whole[0]) == 6 + 6 + 1  # of four, of four and of two pictures
