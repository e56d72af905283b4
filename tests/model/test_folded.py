"""The folded network is the network: against float64, and in the detections of real pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from triscale.anchors import YOLO3_ANCHORS, make_grid
from triscale.decode import DecodeConfig, detect
from triscale.model import folded
from triscale.model.darknet import Darknet
from triscale.model.folded import DTYPES, FoldedCell, faster_precision, fold, speed_up
from triscale.model.layers import ConvCell, yolo3_head
from triscale.model.yolo import ModelConfig, YOLOv3, build_model, init_weights
from triscale.normalise import network_input
from triscale.predict import Detector
from triscale.types import Predictions
from triscale.weights.formats import load_weights

CONFIG = ModelConfig(init="kaiming")
NETWORKS = ("darknet", "mobilenet0.25", "tiny", "spp")


def network(name: str) -> YOLOv3:
    """A network whose batch normalisation does something, each channel something else."""
    generator = torch.Generator().manual_seed(3)
    if name == "darknet":  # Darknet-53 with fewer blocks and channels
        with torch.device("meta"):
            backbone = Darknet(layers=(1, 1, 2, 1, 1), channels=(4, 8, 16, 32, 64, 128))
            head = yolo3_head(backbone.channels, widths=(64, 32, 16), out_channels=[24] * 3)
            model = YOLOv3(backbone, head, anchors=YOLO3_ANCHORS, num_classes=3)
        init_weights(model.to_empty(device="cpu"), CONFIG, generator=generator)
    else:
        backbone = "mobilenet0.25" if name == "spp" else name
        config = replace(CONFIG, backbone=backbone, spp=name == "spp")
        model = build_model(config, 3, generator=generator)
    for cell in model.modules():
        if isinstance(cell, ConvCell):
            norm = cell.norm
            assert norm.running_mean is not None
            assert norm.running_var is not None
            for tensor, low, high in (
                (norm.weight.data, 0.5, 1.5),
                (norm.bias.data, -0.5, 0.5),
                (norm.running_mean, -0.3, 0.3),
                (norm.running_var, 0.5, 2.0),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


@pytest.fixture(params=["fused", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the convolutions that PyTorch has inside, and as if it hadn't."""
    if request.param == "plain":
        monkeypatch.setattr(folded, "_can_fuse", lambda dtype: False)
    return request.param


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_function(name: str, kernels: str) -> None:
    """The exact function is that of the unfolded network in float64."""
    model = network(name)
    images = torch.randn(2, 3, 64, 100, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        full, half = (fold(model, dtype=dtype) for dtype in DTYPES.values())
        exact = model.double()(images.double())
        assert error(full(images), exact) < 5e-6  # unfolded 1e-6
        # eight bits instead of 24, but in the last layer
        assert 1e-4 < error(half(images), exact) < 0.03


def error(found: Predictions, expected: Predictions) -> float:
    """The largest difference of raw predictions, as a part of the largest prediction."""
    assert all(field.dtype == torch.float32 for field in found)
    pairs = list(zip(found, expected, strict=True))
    difference = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    return difference / max(float(theirs.abs().max()) for theirs in expected)


@pytest.mark.parametrize(
    ("slope", "expected"), [(None, [-5.0, 7.0]), (0.0, [0.0, 7.0]), (0.1, [-0.5, 7.0])]
)
def test_a_cell_by_hand(slope: float | None, expected: list[float], kernels: str) -> None:
    """Two channels, x -> -3x + 1 and x -> 3x + 1, at x = 2."""
    conv = nn.Conv2d(1, 2, 1)
    weight = torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1)
    cell = FoldedCell(conv, weight, bias=torch.ones(2), slope=slope)
    assert cell.fused == (kernels == "fused" and torch.backends.mkldnn.is_available())
    assert cell(torch.full((1, 1, 1, 1), 2.0)).flatten().tolist() == pytest.approx(expected)


def test_no_picture() -> None:
    model = network("tiny")
    assert fold(model)(torch.zeros(0, 3, 64, 64)).classes.shape == (0, (2 * 2 + 4 * 4) * 3, 3)


def test_the_network_is_left_alone() -> None:
    model = network("mobilenet0.25").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = fold(model)
    assert model.training
    assert not made.training
    places = {tensor.data_ptr() for tensor in model.state_dict().values()}
    for cell in made.modules():
        assert not isinstance(cell, nn.Conv2d | nn.BatchNorm2d), "all is folded"
        if isinstance(cell, FoldedCell):
            assert cell.bias.data_ptr() not in places
            assert not cell.bias.requires_grad
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert made.anchors == model.anchors


def wrong(*_: object) -> Tensor:
    return torch.zeros(2, 32, 4, 3)


def missing(*_: object) -> Tensor:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")


@pytest.mark.parametrize("kernel", [wrong, missing])
def test_kernels_that_are_not_ours_are_tried_first(
    kernel: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded, "_fused", kernel)
    folded._can_fuse.cache_clear()
    try:
        cell = FoldedCell(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 1, 1), bias=torch.ones(1), slope=0.0)
        assert not cell.fused
        assert cell(torch.ones(1, 1, 1, 1)).item() == 2
    finally:
        folded._can_fuse.cache_clear()


@pytest.mark.parametrize(("gain", "expected"), [(1.25, "bf16"), (1.19, "fp32"), (0.05, "fp32")])
def test_half_precision_must_be_worth_it(
    gain: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(before: Callable[[], Tensor], after: Callable[[], Tensor], **_: object) -> float:
        assert [call().dtype for call in (before, after)] == [*DTYPES.values()]
        return gain

    monkeypatch.setattr(folded, "speed_up", timed)
    assert faster_precision(torch.device("cpu")) == expected


def test_speed_is_a_ratio_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of 2 and 1, 6 and 3, 4 and 5 seconds: the first warms up, of the rest the best."""
    now, called = 0.0, list[str]()
    durations = iter([2.0, 1.0, 6.0, 3.0, 4.0, 5.0])

    def work(name: str) -> None:
        nonlocal now
        now += next(durations)
        called.append(name)

    monkeypatch.setattr(folded.time, "perf_counter", lambda: now)
    before, after = (partial(work, name) for name in ("before", "after"))
    gain = speed_up(before, after, device=torch.device("cpu"), rounds=2)
    assert gain == pytest.approx(4 / 3)
    assert called == ["before", "after"] * 3


def test_detections_of_real_pictures(shared: Path) -> None:
    """Official weights: folding moves no detection, half precision no certain one by much."""
    detector = Detector(shared / "weights" / "yolov3-tiny.weights", device="cpu")
    model, info = load_weights(detector.path)
    grid = make_grid(model.anchors, (info.size, info.size))
    pictures = sorted((shared / "data" / "pictures").glob("*.jpg"))
    batch = detector.engine.batch(*detector.prepare(pictures))
    with torch.inference_mode():
        images = network_input(batch, info.input)
        plain, full, half = (
            detect(m(images), grid, DecodeConfig(score_threshold=0.1))
            for m in (model, fold(model), fold(model, dtype=torch.bfloat16))
        )
    assert int((plain.scores > 0).sum()) > 40
    assert torch.equal(plain.labels, full.labels)
    torch.testing.assert_close(full.scores, plain.scores, rtol=0, atol=2e-5)
    torch.testing.assert_close(full.boxes, plain.boxes, rtol=0, atol=2e-3)
    for i, scores in enumerate(plain.scores):
        for k in torch.nonzero(scores > 0.3).flatten().tolist():
            same = half.labels[i] == plain.labels[i, k]
            away = (half.boxes[i] - plain.boxes[i, k]).abs().amax(-1).where(same, math.inf)
            assert float(away.min()) < 3
            assert abs(float(half.scores[i, away.argmin()] - scores[k])) < 0.06
