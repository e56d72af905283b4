"""Names of classes from two sources."""

from __future__ import annotations

import re

import pytest

from triscale.data.classes import COCO_CLASSES, VOC_CLASSES, class_numbers, require_names
from triscale.errors import UserError


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        ([], [], {}),
        (["dog"], [], {}),
        (["dog", "cat"], ["cat", "dog"], {"dog": 1, "cat": 0}),
        (["Dog"], ["dog", "Dog"], {"Dog": 1}),  # an exact match goes first
        (["DOG"], ["cat", "Dog"], {"DOG": 1}),
        (["DOG"], ["dog", "Dog"], {}),  # two differ just in case
        (["sofa", "TVMonitor"], ["couch", "tv"], {"sofa": 0, "TVMonitor": 1}),
        (["couch"], ["Sofa"], {"couch": 0}),
        (["sofa"], ["couch", "sofa"], {"sofa": 1}),
        (["chair"], ["couch"], {}),
        (["chair"], ["", "x"], {}),
    ],
)
def test_class_numbers(names: list[str], classes: list[str], expected: dict[str, int]) -> None:
    assert class_numbers(names, classes) == expected


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("ab", "expected a list of class names, found 'ab'"),
        ({"a": 1}, "expected a list of class names"),
        (["a", None], "expected class names to be texts, found None"),
        (["a", " "], "found ' '"),
        (["a\nb"], "expected class names to be texts"),
        (["a", "b", "a"], "expected each class name once, found 'a' twice"),
    ],
)
def test_wrong_names(names: object, found: str) -> None:
    with pytest.raises(UserError, match=f"^there: .*{re.escape(found)}"):
        require_names(names, source="there")
    assert require_names([], source="there") == ()
    assert require_names(["côté", "traffic light"], source="there") == ("côté", "traffic light")


def test_each_class_of_voc_is_one_of_coco() -> None:
    """The COCO paper (Lin et al. 2014, section 3.1) says so."""
    numbers = class_numbers(VOC_CLASSES, COCO_CLASSES)
    assert len(set(numbers.values())) == 20
    assert class_numbers(COCO_CLASSES, VOC_CLASSES) == {
        COCO_CLASSES[label]: VOC_CLASSES.index(name) for name, label in numbers.items()
    }
