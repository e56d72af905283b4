"""The grid of predictions against the reference's own anchors, offsets and map sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from triscale.anchors import STRIDES, TINY_ANCHORS, YOLO3_ANCHORS, Anchors, make_grid, map_sizes


@pytest.mark.parametrize(
    ("size", "num_maps", "expected"),
    [
        ((416, 416), 0, ()),
        ((416, 416), 3, ((13, 13), (26, 26), (52, 52))),
        ((320, 608), 3, ((10, 19), (20, 38), (40, 76))),
        ((416, 416), 2, ((13, 13), (26, 26))),
        ((1, 33), 3, ((1, 2), (1, 3), (1, 5))),
    ],
)
def test_map_sizes(
    size: tuple[int, int], num_maps: int, expected: tuple[tuple[int, int], ...]
) -> None:
    assert map_sizes(size, num_maps) == expected


@pytest.mark.golden
@pytest.mark.parametrize("case", [0, 1, 2])  # the last is 100 x 130, no multiple of 32
def test_map_sizes_equal_the_reference(golden: Path, case: int) -> None:
    arrays = np.load(golden / "net_tiny.npz")
    height, width = arrays[f"case{case}_x_seed_shape"][-2:].tolist()
    theirs = tuple(arrays[f"case{case}_pred_stride{stride}"].shape[2:] for stride in STRIDES)
    assert map_sizes((height, width), 3) == theirs
    grid = make_grid(YOLO3_ANCHORS, (height, width))
    assert len(grid.cells) == arrays[f"case{case}_boxes"].shape[1]


@pytest.mark.golden
def test_grid_equals_the_reference(golden: Path) -> None:
    arrays = np.load(golden / "net_tiny_trainmode.npz")
    grid = make_grid(YOLO3_ANCHORS, (96, 96))
    start = 0
    for k, stride in enumerate(STRIDES):
        offsets = arrays[f"offsets{k}"]  # (1, h*w, 1, 2)
        anchors = arrays[f"anchors{k}"]  # (1, 1, 3, 2)
        cells = np.broadcast_to(offsets, (1, offsets.shape[1], 3, 2)).reshape(-1, 2)
        rows = slice(start, start + len(cells))
        start += len(cells)
        np.testing.assert_array_equal(grid.cells[rows], cells)
        np.testing.assert_array_equal(
            grid.anchors[rows], np.broadcast_to(anchors, (1, len(cells) // 3, 3, 2)).reshape(-1, 2)
        )
        assert torch.unique(grid.strides[rows]).tolist() == [stride]
        assert grid.maps[k] == tuple(arrays[f"featmap{k}_shape"][2:])
    assert start == len(grid.cells) == len(grid.anchors) == len(grid.strides)


@pytest.mark.golden
def test_grid_decodes_to_the_reference_boxes(golden: Path) -> None:
    """YOLOv3, section 2.1, written out: it ties cells, anchors and strides to each other."""
    arrays = np.load(golden / "net_tiny_trainmode.npz")
    grid = make_grid(YOLO3_ANCHORS, (96, 96))
    centres = (torch.sigmoid(torch.as_tensor(arrays["raw_centers"])) + grid.cells) * grid.strides
    sizes = torch.exp(torch.as_tensor(arrays["raw_scales"])) * grid.anchors
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], -1)
    np.testing.assert_allclose(boxes, arrays["box_preds"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("anchors", [YOLO3_ANCHORS, TINY_ANCHORS])
def test_grid_is_ordered_by_stride_row_column_anchor(anchors: Anchors) -> None:
    grid = make_grid(anchors, (64, 100))
    expected = [
        (column, row, stride, w, h)
        for stride, pairs in zip(STRIDES, anchors, strict=False)
        for row in range(-(-64 // stride))
        for column in range(-(-100 // stride))
        for w, h in pairs
    ]
    ours = torch.cat([grid.cells, grid.strides, grid.anchors], -1)
    assert ours.dtype == torch.float32
    assert [tuple(row) for row in ours.tolist()] == expected
