"""The networks against what the reference and Darknet compute with the same weights."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden_networks import golden_images, golden_model, reference_names
from triscale.anchors import make_grid
from triscale.decode import DecodeConfig, detect
from triscale.errors import UserError
from triscale.model.yolo import ModelConfig, YOLOv3, build_model, skeleton
from triscale.weights.gluoncv_names import gluoncv_names

SMALL = ModelConfig(backbone="mobilenet0.25")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def raw_maps(model: YOLOv3, images: Tensor) -> list[np.ndarray]:
    with torch.inference_mode():
        return [m.numpy() for m in model.head(model.backbone(images))]


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.golden
@pytest.mark.parametrize(
    ("network", "case"),
    [
        ("tiny", 0),
        ("tiny", 1),
        ("tiny", 2),  # 100 x 130: maps are cropped between the strides
        ("mobilenet0.25", 0),
        ("mobilenet0.25", 1),
        ("mobilenet1.0", 0),
        ("darknet53", 0),
    ],
)
def test_raw_maps_equal_the_references(network: str, case: int, golden: Path) -> None:
    with np.load(golden / f"net_{network}.npz") as arrays:
        images = golden_images(golden, arrays[f"case{case}_x_seed_shape"])
        maps = raw_maps(golden_model(golden, network), images)
        for stride, actual in zip((32, 16, 8), maps, strict=True):
            assert_close(actual, arrays[f"case{case}_pred_stride{stride}"])


@pytest.mark.golden
@pytest.mark.parametrize("case", [0, 1, 2])
def test_predictions_decode_to_the_references_boxes_and_scores(case: int, golden: Path) -> None:
    model = golden_model(golden, "tiny")
    with np.load(golden / "net_tiny.npz") as arrays:
        images = golden_images(golden, arrays[f"case{case}_x_seed_shape"])
        boxes, scores = arrays[f"case{case}_boxes"], arrays[f"case{case}_scores"]
    with torch.inference_mode():
        out = model(images)
    # Paper, section 2.1, written out here: it pins the order of the N predictions.
    grid = make_grid(model.anchors, (images.shape[2], images.shape[3]))
    centres = (out.centres.sigmoid() + grid.cells) * grid.strides
    halves = out.scales.exp() * grid.anchors / 2
    assert_close(torch.cat([centres - halves, centres + halves], -1).numpy(), boxes)
    probabilities = out.classes.sigmoid() * out.objectness.sigmoid()[..., None]
    assert_close(probabilities.mT.numpy(), scores)  # (B, C, N) there


@pytest.mark.golden
def test_predictions_in_training_mode_equal_the_references(golden: Path) -> None:
    with np.load(golden / "net_tiny_trainmode.npz") as arrays:
        images = golden_images(golden, arrays["x_seed_shape"])
        with torch.no_grad():
            out = copy.deepcopy(golden_model(golden, "tiny")).train()(images)
        assert_close(out.centres.numpy(), arrays["raw_centers"])
        assert_close(out.scales.numpy(), arrays["raw_scales"])
        assert_close(out.objectness.numpy(), arrays["objness"][..., 0])
        assert_close(out.classes.numpy(), arrays["class_pred"])


@pytest.mark.golden
@pytest.mark.parametrize("data", ["voc", "coco"])
@pytest.mark.parametrize("backbone", ["darknet53", "mobilenet1.0", "mobilenet0.25"])
def test_tensors_are_the_references(backbone: str, data: str, golden: Path) -> None:
    reference = reference_names(golden)[f"yolo3_{backbone}_{data}"]
    num_classes = len(reference["classes"])
    model = build_model(ModelConfig(backbone=backbone), num_classes, generator=seeded())
    names = gluoncv_names(model)
    ours = {
        names[key]: list(tensor.shape)
        for key, tensor in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    constants = ("anchors", "offsets")
    assert ours == {
        name: shape for name, shape, *_ in reference["params"] if not name.endswith(constants)
    }
    # reference["params"] counts its 6 constants as tensors.
    assert len(names) == reference["tensors"] - 6
    assert sum(p.numel() for p in model.parameters()) == reference["trainable"]


@pytest.mark.parametrize(
    ("config", "name"),
    [(ModelConfig(backbone="tiny"), "tiny"), (ModelConfig(backbone="darknet53", spp=True), "spp")],
)
def test_networks_without_gluoncv_names(config: ModelConfig, name: str) -> None:
    with pytest.raises(UserError, match=f"that GluonCV has too, found YOLOv3-{name}$"):
        gluoncv_names(skeleton(config, 1))


@pytest.mark.golden
@pytest.mark.parametrize(
    ("network", "num_others"),
    # In mobilenet1.0 two pairs of overlapping boxes have scores that rounding decides between: the
    # one that comes first suppresses the other, and one of these a third box.
    [("mobilenet0.25", 0), ("mobilenet1.0", 3), ("darknet53", 0)],
)
def test_a_picture_of_416_pixels(network: str, num_others: int, golden: Path) -> None:
    """From the input to the detections: maps, boxes, scores and what is suppressed."""
    model = golden_model(golden, network)
    images = golden_images(golden, np.array([416, 1, 3, 416, 416]))
    with np.load(golden / f"net_{network}.npz") as arrays:
        for stride, actual in zip((32, 16, 8), raw_maps(model, images), strict=True):
            mean, deviation, *first = arrays[f"at416_pred_stride{stride}_mean_std_first8"]
            scale = 1e-4 * float(np.abs(actual).max())
            assert actual.mean() == pytest.approx(mean, abs=scale)
            assert actual.std() == pytest.approx(deviation, abs=scale)
            np.testing.assert_allclose(actual.flatten()[:8], first, rtol=0, atol=scale)
        names = ("ids", "scores", "bboxes")
        theirs = np.concatenate([arrays[f"at416_nms_{name}"][0] for name in names], 1)
    with torch.inference_mode():
        found = detect(model(images), make_grid(model.anchors, (416, 416)), DecodeConfig())
    ours = np.column_stack([found.labels[0], found.scores[0], found.boxes[0]])
    tolerance = np.array([0, 1e-6, *(1e-4 * np.abs(theirs[:, 2:]).max(),) * 4])
    same = (np.abs(ours[:, None] - theirs) <= tolerance).all(-1)  # (100, 100)
    assert len(theirs) - same.any(0).sum() <= num_others
    assert len(ours) - same.any(1).sum() <= num_others
