"""Our networks in Darknet's terms: numbers of floats, and names of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.weights.darknet_files import FULL, SPP, TINY
from triscale.model.layers import SpatialPyramid
from triscale.model.yolo import ModelConfig, skeleton
from triscale.weights.darknet_layers import NETWORKS, Network, Section, classifier, layers


def floats(sections: tuple[Section, ...]) -> int:
    return sum(section.num_floats for section in sections if section.kind == "convolutional")


@pytest.mark.parametrize(
    ("config", "num_classes", "num_sections", "num_floats"),
    [  # the sizes of Darknet's own files less their header of 20 bytes
        (FULL, 80, 107, (248_007_048 - 20) // 4),  # yolov3.weights
        (FULL, 20, 107, 61_678_657),  # yolov3-voc.weights
        (SPP, 80, 114, 63_052_381),  # yolov3-spp.weights
        (TINY, 80, 24, (35_434_956 - 20) // 4),  # yolov3-tiny.weights
    ],
)
def test_as_many_numbers_as_in_darknets_files(
    config: ModelConfig, num_classes: int, num_sections: int, num_floats: int
) -> None:
    sections = layers(config, num_classes)
    assert len(sections) == num_sections
    assert floats(sections) == num_floats


def test_as_many_numbers_as_in_darknets_backbone() -> None:
    *backbone, pool, last = classifier()
    assert floats(tuple(backbone)) == (162_482_580 - 20) // 4  # darknet53.conv.74
    assert (len(backbone), pool.kind, last.num_floats) == (75, "avgpool", 1_025_000)


@pytest.mark.parametrize("config", [FULL, SPP, TINY])
def test_tensors_are_those_of_the_network(config: ModelConfig) -> None:
    found: dict[str, tuple[int, ...]] = {}
    for section in Network(config, 3, layers(config, 3)).convolutions:
        found |= section.tensors
    state = skeleton(config, 3).state_dict()
    assert found == {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def test_no_number_of_floats_has_two_meanings() -> None:
    """Whatever the number of classes: the order in which networks are tried doesn't matter."""
    whole: dict[str, tuple[int, int]] = {}  # without classes, and for each class
    beginnings: dict[str, set[int]] = {}
    for name, config in NETWORKS.items():
        empty, one = (Network(config, n, layers(config, n)).convolutions for n in (0, 1))
        without = sum(conv.num_floats for conv in empty)
        whole[name] = without, sum(conv.num_floats for conv in one) - without
        normalised = [conv.num_floats for conv in empty if conv.normalised]
        number = next(i for i, conv in enumerate(empty) if not conv.normalised)
        beginnings[name] = set(np.cumsum(normalised[:number]).tolist())
    beginnings["yolov3"].add(floats(classifier()))
    for name, (without, each) in whole.items():
        for other, (base, step) in whole.items():
            # a + bx = c + dy has no solution in whole numbers unless gcd(b, d) divides c - a
            assert name == other or (without - base) % np.gcd(each, step)
        for counts in beginnings.values():
            assert not any(n > without and (n - without) % each == 0 for n in counts)
    assert not beginnings["yolov3-tiny"] & (beginnings["yolov3"] | beginnings["yolov3-spp"])


def test_order_of_the_pyramid() -> None:
    """Darknet's route lists the map pooled by 13 first, then 9, 5 and the map itself."""
    x = torch.zeros(1, 2, 31, 31)
    x[0, 0, 15, 15], x[0, 1, 0, 0] = 1, 2
    squares = SpatialPyramid()(x).sum((0, 2, 3)).tolist()
    assert squares == [169, 2 * 49, 81, 2 * 25, 25, 2 * 9, 1, 2]
