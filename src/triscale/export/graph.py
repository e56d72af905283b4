"""The whole detector as one function of pictures, made of operators that every format has.

Normalisation, network, decoding and suppression in one graph: what training measures is what other
programs run. The suppression is ONNX's NonMaxSuppression, given the candidates of `decode.detect`
in their order; what comes out has a fixed number of rows, those that aren't used are -1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from triscale.anchors import STRIDES, Grid
from triscale.boxes import pairwise_iou
from triscale.decode import DecodeConfig, decode_boxes, decode_scores
from triscale.export.resize import fitted, placement_of
from triscale.model.yolo import YOLOv3
from triscale.pixels import GREY, MEAN, NORMALISATIONS, Fit, InputConfig
from triscale.types import Predictions

# boxes (N, K, 4) and scores (N, C, K), best first inside a picture, and two thresholds: which of
# the candidates (N, K) survive
Suppress = Callable[[Tensor, Tensor, DecodeConfig], Tensor]


class Outputs(NamedTuple):
    """What a graph gives; unused rows are -1."""

    boxes: Tensor  # (N, K, 4) float32 xyxy in pixels of the original pictures
    scores: Tensor  # (N, K) float32, best first
    labels: Tensor  # (N, K) int64
    number: Tensor  # (N,) int64: rows that are used


class Raw(nn.Module):
    """Pictures (N, H, W, 3) uint8 at the network's size -> raw predictions, in one output.

    With a letterbox the bars must be in the picture, in grey.
    """

    gain: Tensor  # (3, 1, 1), as the other two: grey levels to the network's numbers
    offset: Tensor
    fill: Tensor  # what surrounds a letterboxed picture

    def __init__(self, model: YOLOv3, config: InputConfig, *, half: bool) -> None:
        super().__init__()
        self.model = model.half() if half else model
        self.half_precision = half
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALISATIONS[config.normalise])
        fill = torch.tensor(MEAN if config.fit == "stretch" else [GREY] * 3).view(3, 1, 1)
        for name, value in {
            "gain": 1 / (255 * std),
            "offset": -mean / std,
            "fill": (fill - mean) / std,
        }.items():
            self.register_buffer(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """(N, P, 5 + C): t_x t_y t_w t_h t_o and the classes' logits."""
        return torch.cat(self.predict(self.normalised(images)), -1)

    def normalised(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, 3, H, W) float32."""
        return images.permute(0, 3, 1, 2).float() * self.gain + self.offset

    def predict(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised pictures -> centres, scales, objectness (N, P, 1), classes, in float32."""
        found = self.model(images.half() if self.half_precision else images)
        fields = found._replace(objectness=found.objectness[..., None])
        return tuple(field.float() for field in fields)


class Whole(nn.Module):
    """Pictures -> Outputs.

    With `resize` one input, pictures (N, H, W, 3) of any one size; without it pictures at the
    network's size, and `sizes` (N, 2) int64, the heights and widths that they had before.
    `size` is (height, width), None: any multiple of 32, without `resize` only.
    """

    def __init__(
        self,
        model: YOLOv3,
        config: InputConfig,
        *,
        size: tuple[int, int] | None,
        decode: DecodeConfig,
        suppress: Suppress,
        resize: bool,
        half: bool,
    ) -> None:
        super().__init__()
        assert size or not resize
        self.raw = Raw(model, config, half=half)
        self.fit: Fit = config.fit
        self.size, self.decode, self.suppress = size, decode, suppress
        self.resize = resize
        self.anchors, self.num_classes = model.anchors, model.num_classes
        self.grid = model.grid(size or (STRIDES[0], STRIDES[0]))

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """The fields of Outputs, as a plain tuple: torch.export writes no other."""
        if self.resize:
            assert self.size
            n, height, width = images.shape[:3]
            sides = [torch.full((n,), side, dtype=torch.int64) for side in (height, width)]
            sizes = torch.stack(sides, -1)
            images = fitted(images, self.size, fit=self.fit)
        assert sizes is not None
        size = self.size or (images.shape[1], images.shape[2])
        place = placement_of(sizes, size, fit=self.fit)  # (N, 4)
        pixels = self.raw.normalised(images)
        if self.fit == "letterbox":
            inside = _inside(place, size)
            pixels = pixels * inside + self.raw.fill * (1 - inside)
        centres, scales, objectness, classes = self.raw.predict(pixels)
        predictions = Predictions(centres, scales, objectness[..., 0], classes)
        boxes = decode_boxes(predictions, self.grid if self.size else self._grid(size))
        found = self._best(boxes, decode_scores(predictions))
        return tuple(found._replace(boxes=_original(found, place, sizes)))

    def _best(self, boxes: Tensor, scores: Tensor) -> Outputs:
        """Boxes (N, P, 4) and scores (N, P, C) -> Outputs in pixels of the network input."""
        config, c = self.decode, self.num_classes
        # Nothing below the threshold lives, so that -1 may stand for it from here on.
        scores = torch.where(scores > config.score_threshold, scores, -1.0).flatten(1)
        best, pairs = scores.topk(min(config.top_k, scores.shape[1]))
        positions, labels = pairs // c, pairs % c
        boxes = _at(boxes, positions)
        alive = best > 0
        if config.suppress:
            own = labels[:, None] == torch.arange(c)[None, :, None]  # (N, C, K)
            by_class = torch.where(own, best[:, None], -1.0)
            alive = alive & self.suppress(boxes, by_class, config)
        rows = min(config.num_rows, best.shape[1])
        kept, order = torch.where(alive, best, -1.0).topk(rows)
        used = kept > 0
        return Outputs(
            _at(boxes, order),
            kept,
            torch.where(used, labels.gather(1, order), -1),
            used.sum(1),
        )

    def _grid(self, size: tuple[int, int]) -> Grid:
        """The grid of a size that only the graph knows."""
        cells, strides, anchors = list[Tensor](), list[Tensor](), list[Tensor]()
        for stride, pairs in zip(STRIDES, self.anchors, strict=False):
            rows, columns, number = size[0] // stride, size[1] // stride, len(pairs)
            x = torch.arange(columns)[None, :, None].expand(rows, columns, number)
            y = torch.arange(rows)[:, None, None].expand(rows, columns, number)
            cells.append(torch.stack([x, y], -1).reshape(-1, 2).float())
            strides.append(torch.full_like(cells[-1][:, :1], stride))
            kinds = torch.tensor(pairs)[None, None].expand(rows, columns, number, 2)
            anchors.append(kinds.reshape(-1, 2))
        return self.grid._replace(
            cells=torch.cat(cells), strides=torch.cat(strides), anchors=torch.cat(anchors)
        )


def onnx_suppress(boxes: Tensor, scores: Tensor, config: DecodeConfig) -> Tensor:
    """ONNX's NonMaxSuppression; only for graphs that are going to be ONNX."""
    n, k = boxes.shape[:2]
    limits = torch.tensor([k]), torch.tensor([config.iou_threshold]), torch.tensor([0.0])
    # (S, 3) picture, class, candidate; how many there are isn't known, and here it doesn't matter
    chosen = torch.onnx.ops.symbolic(
        "NonMaxSuppression", (boxes, scores, *limits), dtype=torch.int64, shape=(n * k, 3)
    )
    rows = chosen[:, 0] * k + chosen[:, 2]
    ones = rows.float() * 0 + 1  # ones_like would become a constant of as many rows as are stated
    alive = torch.onnx.ops.symbolic(
        "ScatterElements",
        (torch.zeros(n * k), rows, ones),
        dtype=torch.float32,
        shape=(n * k,),
        attrs={"axis": 0},
    )
    return alive.view(n, k) > 0


def torch_suppress(boxes: Tensor, scores: Tensor, config: DecodeConfig) -> Tensor:
    """The same in torch, for graphs that stay torch's: rounds until nothing changes."""
    labels, found = scores.argmax(1), scores.amax(1) > 0  # (N, K)
    beats = pairwise_iou(boxes, boxes) > config.iou_threshold  # (N, K, K)
    beats = (beats & (labels[:, :, None] == labels[:, None])).float().triu(1)

    def step(before: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        beaten = (alive[:, None].float() @ beats)[:, 0] > 0
        return alive.clone(), found & ~beaten

    def unsettled(before: Tensor, alive: Tensor) -> Tensor:
        return (before != alive).any()

    # as in decode.py: better boxes alone beat, so that the rule has one solution
    _, alive = torch.while_loop(unsettled, step, (torch.zeros_like(found), found.clone()))
    return alive


def _inside(place: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, H, W): 1 where a pixel's centre lies in its picture's place (N, 4), else 0."""
    left, top, width, height = (value[:, None] for value in place.unbind(-1))
    x, y = torch.arange(size[1]) + 0.5, torch.arange(size[0]) + 0.5
    columns = (x >= left) & (x < left + width)
    rows = (y >= top) & (y < top + height)
    return (rows[:, None, :, None] & columns[:, None, None]).float()


def _original(found: Outputs, place: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (N, K, 4) in pixels of pictures of `sizes` (N, 2), cut at their borders."""
    sides = sizes.flip(1).float()  # width, height
    scale = sides / place[:, 2:]
    corners = place[:, :2].repeat(1, 2)[:, None]
    boxes = (found.boxes - corners) * scale.repeat(1, 2)[:, None]
    boxes = torch.minimum(boxes.clamp(min=0), sides.repeat(1, 2)[:, None])
    return torch.where(found.scores[..., None] > 0, boxes, -1.0)


def _at(field: Tensor, positions: Tensor) -> Tensor:
    """The rows (N, K, 4) of a field (N, P, 4) at the positions (N, K)."""
    return field.gather(1, positions[..., None].expand(-1, -1, field.shape[2]))
