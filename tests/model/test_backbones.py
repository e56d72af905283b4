"""The backbones: shapes, sizes known from elsewhere, Darknet's pooling, names."""

from __future__ import annotations

import gzip
import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from triscale.anchors import map_sizes
from triscale.errors import UserError
from triscale.model.mobilenet import MobileNet, width_of
from triscale.model.tiny import SamePool
from triscale.model.yolo import build_backbone


@pytest.mark.parametrize("size", [(1, 1), (64, 96), (100, 130), (33, 31)])
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("darknet53", (1024, 512, 256)),
        ("mobilenet1.0", (1024, 512, 256)),
        ("mobilenet0.5", (512, 256, 128)),
        ("mobilenet0.25", (256, 128, 64)),
        ("tiny", (1024, 256)),
    ],
)
def test_maps_are_deepest_first_and_round_up(
    name: str, channels: tuple[int, ...], size: tuple[int, int]
) -> None:
    with torch.device("meta"):  # shapes only
        backbone = build_backbone(name)
        maps = backbone(torch.empty(2, 3, *size))
    assert backbone.channels == channels
    expected = [
        (2, c, *rows_columns)
        for c, rows_columns in zip(channels, map_sizes(size, len(channels)), strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected


@pytest.mark.golden
@pytest.mark.parametrize("name", ["darknet53", "mobilenet1.0", "mobilenet0.25"])
def test_parameters_as_many_as_the_reference_has(name: str, golden: Path) -> None:
    rows = json.loads(gzip.decompress((golden / "param_names.json.gz").read_bytes()))
    expected = sum(
        prod(shape)
        for tensor, shape, grad, *_ in rows[f"backbone:{name}"]["params"]
        if grad == "write" and not tensor.startswith("output.")  # the ImageNet classifier
    )
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert sum(p.numel() for p in backbone.parameters()) == expected


@pytest.mark.parametrize("size", [(0, 1, 2, 2), (1, 1, 1, 1), (2, 3, 4, 7), (1, 2, 13, 13)])
def test_same_pool_looks_right_and_down_only(size: tuple[int, int, int, int]) -> None:
    # Negative throughout: a zero that leaked in from padding would win.
    x = -np.random.default_rng(0).uniform(1, 2, size).astype(np.float32)
    expected = np.empty_like(x)
    for row in range(size[2]):
        for column in range(size[3]):
            window = x[:, :, row : row + 2, column : column + 2]
            expected[:, :, row, column] = window.max((2, 3))
    np.testing.assert_array_equal(SamePool()(torch.from_numpy(x)).numpy(), expected)


@pytest.mark.parametrize(
    "name", ["", "resnet50", "Darknet53", "mobilenet", "mobilenet-1.0", "mobilenet0.01", "tiny "]
)
def test_unknown_name(name: str) -> None:
    with pytest.raises(
        UserError, match=r"known are darknet53, mobilenet<width>.* and tiny"
    ) as info:
        build_backbone(name)
    assert f"'{name}'" in str(info.value)


@pytest.mark.parametrize("width", [1.0, 0.75, 0.5, 0.25, 0.1, 0.35, 1.4, 1 / 32])
def test_the_width_by_the_channels(width: float) -> None:
    channels = MobileNet(width).channels[0]
    assert MobileNet(width_of(channels)).channels[0] == channels
    assert width_of(channels) == pytest.approx(width, abs=1e-3)


@pytest.mark.parametrize("channels", [-1, 0, 31])
def test_no_width_is_so_narrow(channels: int) -> None:
    assert width_of(channels) == 0
