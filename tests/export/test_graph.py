"""Decoding and suppression in the graph beside `decode.detect`, on crowded random predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from triscale.decode import DecodeConfig, decode_boxes, decode_scores, detect
from triscale.export.graph import Whole, torch_suppress
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import InputConfig
from triscale.types import Predictions

CLASSES = 3


def predictions(seed: int, number: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, number, *shape, generator=generator)

    return Predictions(draw(2), draw(2) + 1, draw() + 2, draw(CLASSES) + 2)


@pytest.mark.parametrize(
    "config",
    [
        DecodeConfig(score_threshold=0.9999),  # nothing is left
        DecodeConfig(score_threshold=0.3, iou_threshold=0.3),
        DecodeConfig(score_threshold=0.01, iou_threshold=0.45, top_k=200),
        DecodeConfig(score_threshold=0.1, iou_threshold=0.7, top_k=30),
        DecodeConfig(iou_threshold=1.0),  # no suppression
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_as_detect(config: DecodeConfig, seed: int) -> None:
    model = build_model(
        ModelConfig(backbone="mobilenet0.1"), CLASSES, generator=torch.Generator().manual_seed(0)
    )
    whole = Whole(
        model,
        InputConfig(),
        size=(96, 96),
        decode=config,
        suppress=torch_suppress,
        resize=False,
        half=False,
    )
    raw = predictions(seed, len(whole.grid.cells))
    expected = detect(raw, whole.grid, config)
    found = whole._best(decode_boxes(raw, whole.grid), decode_scores(raw))
    for picture in range(2):
        count = int((expected.scores[picture] >= 0).sum())
        assert int(found.number[picture]) == count
        np.testing.assert_allclose(
            found.scores[picture, :count], expected.scores[picture, :count], atol=1e-6
        )
        np.testing.assert_allclose(
            found.boxes[picture, :count], expected.boxes[picture, :count], atol=1e-3
        )
        assert (found.labels[picture, :count] == expected.labels[picture, :count]).all()
        assert (found.scores[picture, count:] == -1).all()
