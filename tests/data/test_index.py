"""The packed index: strings come back as they were, selections keep objects with their images."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields

import numpy as np
import pytest

from triscale.data.index import Index, PackedStrings, StringPacker


@pytest.mark.parametrize("strings", [[], [""], ["a", "", "größe/图.jpg", "b\udcff"]])
def test_packed_strings(strings: list[str]) -> None:
    packed = PackedStrings(strings)
    assert len(packed) == len(strings)
    assert list(packed) == strings
    assert packed[1:] == strings[1:]
    assert packed[:-1] == strings[:-1]
    assert list(packed.select(np.arange(len(strings))[::-1])) == strings[::-1]
    prefixed = PackedStrings((f"ä/{s}" for s in strings), prefix="ä/")
    assert list(prefixed) == [f"ä/{s}" for s in strings]
    assert prefixed.data.tobytes() == packed.data.tobytes()
    assert list(pickle.loads(pickle.dumps(prefixed))) == list(prefixed)
    assert [packed[i - len(strings)] for i in range(len(strings))] == strings
    with pytest.raises(IndexError):
        packed[len(strings)]


def test_packed_strings_are_small_in_transit() -> None:
    strings = [f"{i:08}" for i in range(10_000)]
    assert list(pickle.loads(pickle.dumps(PackedStrings(strings)))) == strings
    assert len(pickle.dumps(PackedStrings(strings))) < 10_000 * (8 + 8) + 1000


def test_a_string_that_is_no_text_is_refused_and_leaves_no_trace() -> None:
    packer = StringPacker()
    packer.add("a")
    with pytest.raises(UnicodeEncodeError):
        packer.add("bc\ud800")
    packer.add("d")
    assert list(packer.packed()) == ["a", "d"]


def make_index() -> Index:
    """Three pictures with 2, 0 and 1 objects; every number differs."""
    return Index(
        name="some",
        classes=("x", "y", "z"),
        paths=PackedStrings(["/a", "/b", "/c"]),
        ids=PackedStrings(["a", "b", "c"]),
        sizes=np.array([[1, 2], [3, 4], [5, 6]], np.int32),
        offsets=np.array([0, 2, 2, 3]),
        boxes=np.arange(12, dtype=np.float32).reshape(3, 4),
        labels=np.array([0, 1, 2], np.int32),
        difficult=np.array([True, False, False]),
        crowd=np.array([False, True, False]),
        areas=np.array([10, 11, 12], np.float32),
    )


@pytest.mark.parametrize(
    ("images", "ids", "labels", "offsets"),
    [
        ([], [], [], [0]),
        ([1], ["b"], [], [0, 0]),
        ([2, 0], ["c", "a"], [2, 0, 1], [0, 1, 3]),
        ([0, 1, 2], ["a", "b", "c"], [0, 1, 2], [0, 2, 2, 3]),
        ([2, 2], ["c", "c"], [2, 2], [0, 1, 2]),
    ],
)
def test_select(images: list[int], ids: list[str], labels: list[int], offsets: list[int]) -> None:
    index = make_index()
    chosen = index.select(np.array(images, np.int64))
    assert len(chosen) == len(images)
    assert list(chosen.ids) == ids
    assert list(chosen.paths) == [f"/{name}" for name in ids]
    assert chosen.offsets.tolist() == offsets
    assert chosen.labels.tolist() == labels
    np.testing.assert_array_equal(chosen.boxes, index.boxes[labels].reshape(-1, 4))
    np.testing.assert_array_equal(chosen.sizes, index.sizes[images].reshape(-1, 2))
    np.testing.assert_array_equal(chosen.areas, index.areas[labels])
    np.testing.assert_array_equal(chosen.difficult, index.difficult[labels])
    np.testing.assert_array_equal(chosen.crowd, index.crowd[labels])


def test_objects_of_an_image() -> None:
    index = make_index()
    assert [index.objects(i) for i in range(3)] == [slice(0, 2), slice(2, 2), slice(2, 3)]


def test_an_index_that_is_sent_is_the_same() -> None:
    index = make_index()
    for other in (pickle.loads(pickle.dumps(index)), copy.copy(index), copy.deepcopy(index)):
        assert list(other.paths) == list(index.paths)
        for field in fields(Index)[4:-1]:
            expected = getattr(index, field.name)
            np.testing.assert_array_equal(getattr(other, field.name), expected, strict=True)
        assert (other.name, other.classes, other.inclusive) == ("some", ("x", "y", "z"), False)
