"""Anchor boxes and the grid of prediction positions.

YOLOv3 (Redmon and Farhadi 2018, section 2.1) predicts one box per anchor at every cell of three
feature maps. Everywhere in triscale the positions are ordered by stride (32, 16, 8), inside a
stride row by row, inside a cell by anchor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# (w, h) in network-input pixels, per stride, deepest stride first.
Anchors = tuple[tuple[tuple[float, float], ...], ...]

STRIDES = (32, 16, 8)
# YOLOv3, section 2.3: k-means on COCO.
YOLO3_ANCHORS: Anchors = (
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
)
# Darknet's yolov3-tiny.cfg: two strides only.
TINY_ANCHORS: Anchors = (
    ((81.0, 82.0), (135.0, 169.0), (344.0, 319.0)),
    ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0)),
)


class Kinds(NamedTuple):
    """The A anchors of all strides, each with the map that it is on."""

    anchors: Tensor  # (A, 2) float64: w, h in pixels
    cells: Tensor  # (A, 2) float64: columns, rows of its map
    starts: Tensor  # (A,) int64: the first prediction of its map
    per_cell: int


class Grid(NamedTuple):
    """Where each of the N predictions of an input size sits, on some device."""

    cells: Tensor  # (N, 2) float: column, row
    strides: Tensor  # (N, 1) float: pixels per cell
    anchors: Tensor  # (N, 2) float: w, h in pixels
    maps: tuple[tuple[int, int], ...]  # (rows, columns) of each stride's map
    kinds: Kinds
    # how many cells a predicted centre ranges over; 1: its own, without the edges (YOLOv3)
    scale_x_y: float = 1.0


def map_sizes(size: tuple[int, int], num_maps: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of each feature map for an input of `size` (height, width)."""
    height, width = size
    # Every halving in the networks rounds up, so a map has ceil(side / stride) rows and columns.
    return tuple((-(-height // s), -(-width // s)) for s in STRIDES[:num_maps])


def make_grid(
    anchors: Anchors,
    size: tuple[int, int],
    *,
    scale_x_y: float = 1.0,
    device: torch.device | None = None,
) -> Grid:
    """The grid of positions for an input of `size` (height, width)."""
    maps = map_sizes(size, len(anchors))
    cells: list[Tensor] = []
    strides: list[Tensor] = []
    whs: list[Tensor] = []
    columns_rows: list[tuple[int, int]] = []
    starts: list[int] = []
    for stride, pairs, (rows, columns) in zip(STRIDES, anchors, maps, strict=False):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        cell = torch.stack([x, y], -1).reshape(-1, 1, 2).expand(-1, len(pairs), 2).reshape(-1, 2)
        columns_rows += [(columns, rows)] * len(pairs)
        starts += [sum(map(len, cells))] * len(pairs)
        cells.append(cell.float())
        strides.append(torch.full((len(cell), 1), float(stride)))
        whs.append(torch.tensor(pairs).repeat(rows * columns, 1))
    kinds = Kinds(
        torch.tensor([pair for row in anchors for pair in row], dtype=torch.float64).to(device),
        torch.tensor(columns_rows, dtype=torch.float64).to(device),
        torch.tensor(starts).to(device),
        len(anchors[0]),
    )
    return Grid(
        torch.cat(cells).to(device),
        torch.cat(strides).to(device),
        torch.cat(whs).to(device),
        maps,
        kinds,
        scale_x_y,
    )
