"""The networks against what the reference and Darknet compute with the same weights."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from triscale.anchors import YOLO3_ANCHORS, make_grid
from triscale.errors import UserError
from triscale.model.darknet import Darknet
from triscale.model.layers import ConvCell, yolo3_head
from triscale.model.yolo import ModelConfig, YOLOv3, build_model
from triscale.weights.gluoncv_names import gluoncv_names

SMALL = ModelConfig(backbone="mobilenet0.25")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_golden() -> YOLOv3:
    """The small Darknet that the golden arrays call `tiny` (not Darknet's yolov3-tiny)."""
    backbone = Darknet(layers=(1, 1, 1, 1, 1), channels=(4, 8, 16, 24, 32, 48))
    head = yolo3_head(backbone.channels, widths=(16, 12, 8), out_channels=(30, 30, 30))
    return YOLOv3(backbone, head, anchors=YOLO3_ANCHORS, num_classes=5)


@lru_cache(maxsize=1)
def recipe(golden: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", golden / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def reference_names(golden: Path) -> dict[str, dict]:
    return json.loads(gzip.decompress((golden / "param_names.json.gz").read_bytes()))


@lru_cache(maxsize=1)  # the tests ask for one network after the other
def golden_model(golden: Path, network: str) -> YOLOv3:
    """`network` with the weights that the reference had when it made the golden arrays."""
    if network == "tiny":
        model = tiny_golden()
    else:
        model = build_model(ModelConfig(backbone=network), 20, generator=seeded())
    gain = recipe(golden).PRED_GAIN[network]
    names = gluoncv_names(model)
    state = {
        key: torch.from_numpy(recipe(golden).value(names[key], tuple(tensor.shape), gain))
        for key, tensor in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert not unexpected
    return model.eval()


def golden_images(golden: Path, seed_shape: np.ndarray) -> Tensor:
    seed, *shape = (int(v) for v in seed_shape)
    return torch.from_numpy(recipe(golden).image(seed, tuple(shape)))


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


def test_tiny_has_no_gluoncv_names() -> None:
    model = build_model(ModelConfig(backbone="tiny"), 1, generator=seeded())
    with pytest.raises(UserError, match="GluonCV has no YOLOv3-tiny"):
        gluoncv_names(model)


@pytest.mark.parametrize(
    ("backbone", "num_classes", "num_floats"),
    [
        ("tiny", 80, (35_434_956 - 20) // 4),  # yolov3-tiny.weights less its header of 20 bytes
        ("darknet53", 80, 62_001_757),  # yolov3.weights
        ("darknet53", 20, 61_678_657),  # yolov3-voc.weights
    ],
)
def test_as_many_numbers_as_in_darknets_files(
    backbone: str, num_classes: int, num_floats: int
) -> None:
    model = build_model(ModelConfig(backbone=backbone), num_classes, generator=seeded())
    state = model.state_dict()
    found = sum(t.numel() for key, t in state.items() if not key.endswith("num_batches_tracked"))
    assert found == num_floats


def load_darknet_tiny(model: YOLOv3, file: Path) -> None:
    """Fill YOLOv3-tiny from Darknet's file: a header of 20 bytes, then the layers of the .cfg."""
    numbers = torch.from_numpy(np.fromfile(file, dtype="<f4", offset=20))
    layers: list[nn.Module] = [m for m in model.backbone.modules() if isinstance(m, ConvCell)]
    for i, block in enumerate(model.head.blocks):
        layers += [model.head.transitions[i - 1]] if i else []
        layers += [*block.body, block.tip, model.head.outputs[i]]
    for layer in layers:
        if isinstance(layer, ConvCell):
            norm = layer.norm
            fields = [norm.bias, norm.weight, norm.running_mean, norm.running_var]
            fields.append(layer.conv.weight)
        else:
            fields = [layer.bias, layer.weight]
        for field in fields:
            field.data.copy_(numbers[: field.numel()].view_as(field))
            numbers = numbers[field.numel() :]
        if isinstance(layer, ConvCell):
            # Darknet divides by sqrt(variance) + 1e-6, not by sqrt(variance + 1e-5).
            variance = layer.norm.running_var
            variance.copy_((variance.sqrt() + 1e-6) ** 2 - layer.norm.eps)
    assert len(numbers) == 0


@pytest.mark.parametrize("picture", ["dog", "person", "street_small"])
def test_tiny_computes_what_darknet_does(picture: str, shared: Path) -> None:
    model = build_model(ModelConfig(backbone="tiny"), 80, generator=seeded()).eval()
    load_darknet_tiny(model, shared / "weights" / "yolov3-tiny.weights")
    with np.load(shared / "oracles" / "darknet-tiny" / "tensors.npz") as arrays:
        images = torch.from_numpy(arrays[f"{picture}_input"])[None]
        expected = arrays[f"{picture}_prenms"]  # (K, 85): box cxcywh, objectness, class scores
        sides = arrays[f"{picture}_wh"]
    with torch.inference_mode():
        out = model(images)
    grid = make_grid(model.anchors, (416, 416))
    centres = ((out.centres.sigmoid() + grid.cells) * grid.strides)[0].numpy()
    sizes = (out.scales.exp() * grid.anchors)[0].numpy()
    # Darknet reports boxes in pixels of the picture, which lies centred in the 416 x 416 input,
    # and only those of objectness above 1e-4; scores that are not above 1e-4 are set to 0.
    fitted = sides * 416 // sides.max()
    zoom = sides / fitted
    centres -= (416 - fitted) / 2
    objectness = out.objectness.sigmoid()[0].numpy()
    scores = objectness[:, None] * out.classes.sigmoid()[0].numpy()
    kept = objectness > 1e-4
    actual = np.concatenate(
        [centres * zoom, sizes * zoom, objectness[:, None], scores * (scores > 1e-4)], 1
    )[kept]
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual[:, :4], expected[:, :4], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(actual[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-7)
