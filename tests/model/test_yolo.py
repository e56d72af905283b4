"""The detector against the reference's own outputs, its initialisation and its new classes."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import math
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from triscale.anchors import TINY_ANCHORS, YOLO3_ANCHORS, make_grid
from triscale.config import build, to_dict
from triscale.errors import UserError
from triscale.model.darknet import Darknet
from triscale.model.layers import ConvCell, yolo3_head
from triscale.model.yolo import ModelConfig, YOLOv3, build_model, reclass
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


@pytest.mark.parametrize(
    ("backbone", "shape", "num_predictions"),
    [
        ("mobilenet0.25", (0, 3, 64, 64), 252),
        ("tiny", (0, 3, 64, 64), 60),
        ("mobilenet0.25", (1, 3, 416, 416), 10647),  # SPEC of the reference, item 7
        ("tiny", (1, 3, 416, 416), 2535),  # Darknet: 3 * (13 * 13 + 26 * 26)
        ("mobilenet0.25", (2, 3, 33, 70), 3 * (2 * 3 + 3 * 5 + 5 * 9)),
        ("tiny", (2, 3, 33, 70), 3 * (2 * 3 + 3 * 5)),
    ],
)
def test_shapes_of_predictions(backbone: str, shape: tuple[int, ...], num_predictions: int) -> None:
    model = build_model(ModelConfig(backbone=backbone), 7, generator=seeded()).eval()
    with torch.inference_mode():
        out = model(torch.zeros(shape))
    leading = (shape[0], num_predictions)
    assert out.centres.shape == (*leading, 2)
    assert out.scales.shape == (*leading, 2)
    assert out.objectness.shape == leading
    assert out.classes.shape == (*leading, 7)


@pytest.mark.parametrize("backbone", ["mobilenet0.25", "tiny"])
def test_channels_last_gives_the_same(backbone: str) -> None:
    config = ModelConfig(backbone=backbone, init="kaiming")
    model = build_model(config, 3, generator=seeded()).eval()
    images = torch.randn(2, 3, 64, 96, generator=seeded(1))
    with torch.inference_mode():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        actual = model(images.to(memory_format=torch.channels_last))
    for a, b in zip(actual, expected, strict=True):
        assert_close(a.numpy(), b.numpy())


@pytest.mark.parametrize("backbone", ["mobilenet0.25", "tiny"])
def test_every_parameter_gets_a_gradient(backbone: str) -> None:
    model = build_model(ModelConfig(backbone=backbone), 2, generator=seeded())
    out = model(torch.randn(2, 3, 64, 64, generator=seeded(1)))
    sum(field.square().mean() for field in out).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_own_anchors_may_differ_in_number_between_strides() -> None:
    anchors = (((9.0, 9.0),), ((4.0, 5.0), (6.0, 7.0)))
    model = build_model(ModelConfig("tiny", anchors=anchors), 1, generator=seeded()).eval()
    assert model.anchors == anchors
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).objectness.shape == (1, 1 * 4 + 2 * 16)


def test_default_anchors() -> None:
    assert build_model(SMALL, 1, generator=seeded()).anchors == YOLO3_ANCHORS
    assert build_model(ModelConfig("tiny"), 1, generator=seeded()).anchors == TINY_ANCHORS


# --- initialisation


@pytest.mark.parametrize("init", ["uniform", "kaiming"])
def test_building_depends_on_the_generator_alone(init: str) -> None:
    config = build(ModelConfig, {"backbone": "mobilenet0.25", "init": init}, where="model")
    before = torch.get_rng_state()
    first = build_model(config, 4, generator=seeded(1)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = build_model(config, 4, generator=seeded(1)).state_dict()
    other = build_model(config, 4, generator=seeded(2)).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    weights = [key for key in first if first[key].ndim == 4]
    assert not any(torch.equal(first[key], other[key]) for key in weights)


def test_uniform_is_the_references() -> None:
    model = build_model(SMALL, 4, generator=seeded())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.abs().max() <= 0.07
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)
            assert (module.weight == 1).all()
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert (module.running_var == 1).all()
            assert module.num_batches_tracked == 0
    weight = model.head.blocks[0].tip.conv.weight.detach()  # 1.2 million draws
    assert weight.mean().item() == pytest.approx(0, abs=2e-4)
    assert weight.std().item() == pytest.approx(0.14 / math.sqrt(12), rel=5e-3)


def test_kaiming_keeps_the_variance_of_gradients() -> None:
    config = ModelConfig(backbone="mobilenet0.25", init="kaiming")
    model = build_model(config, 4, generator=seeded())
    tip = model.head.blocks[0].tip.conv.weight  # 3x3 to 512 channels, leaky ReLU
    assert tip.std().item() == pytest.approx(math.sqrt(2 / (1.01 * 9 * 512)), rel=5e-3)
    # A 1x1 cell on random gradients: what comes out at its input has the variance that went in.
    cell = model.backbone.stages[2][1].pointwise
    assert isinstance(cell, ConvCell)
    x = torch.randn(64, 256, 8, 8, generator=seeded(1), requires_grad=True)
    y = cell.act(cell.conv(x))
    gradient = torch.randn(y.shape, generator=seeded(2))
    (back,) = torch.autograd.grad(y, x, gradient)
    assert back.var().item() == pytest.approx(1, rel=0.03)
    # Depthwise: 9 weights reach each input, whatever the number of channels.
    depthwise = model.backbone.stages[2][1].depthwise.conv.weight
    assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert model.head.outputs[0].weight.std().item() == pytest.approx(0.01, rel=0.03)


@pytest.mark.parametrize(
    ("objectness", "classes", "expected"),
    [(0.0, 0.0, (0.0, 0.0)), (0.5, 0.0, (0.0, 0.0)), (0.01, 0.25, (-4.59512, -1.098612))],
)
def test_priors(objectness: float, classes: float, expected: tuple[float, float]) -> None:
    config = ModelConfig("tiny", objectness_prior=objectness, class_prior=classes)
    model = build_model(config, 2, generator=seeded())
    for layer in model.head.outputs:
        row = [0.0] * 4 + [expected[0]] + [expected[1]] * 2
        np.testing.assert_allclose(layer.bias.detach().numpy(), row * 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"backbone": "tiny", "anchors": [[[1, 2]]]}, "tiny needs 2 lists .* for strides 32, 16;"),
        ({"anchors": [[[1, 2]], [[1, 2]], []]}, "darknet53 needs 3 lists"),
        ({"anchors": [[[1, 2]], [[1, 2]], [[0, 2]]]}, "model.anchors: expected sides above 0"),
        ({"objectness_prior": 1.0}, "model.objectness_prior: expected at least 0 and less than 1"),
        ({"class_prior": -0.1}, "model.class_prior: expected .* got -0.1"),
        ({"init": "xavier"}, "model.init: expected one of 'uniform', 'kaiming'"),
        ({"backbone": "vgg"}, "unknown network 'vgg'"),
    ],
)
def test_wrong_settings(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(build(ModelConfig, table, where="model"), 1, generator=seeded())


def test_config_survives_toml_types() -> None:
    config = ModelConfig(backbone="tiny", anchors=TINY_ANCHORS, class_prior=0.5)
    assert build(ModelConfig, to_dict(config), where="model") == config


# --- new classes


def rows(model: YOLOv3, stride: int) -> np.ndarray:
    """Weights and biases of an output layer: (A, 5 + C, inputs + 1)."""
    layer = model.head.outputs[stride]
    both = torch.cat([layer.weight.detach().flatten(1), layer.bias.detach()[:, None]], 1)
    return both.unflatten(0, (3, -1)).numpy()


@pytest.mark.parametrize(
    ("new_classes", "reuse", "sources"),  # per new class the old row, or None
    [
        ([], None, []),
        (["x"], None, [None]),
        (["cat", "dog"], None, [2, 1]),
        (["dog", "tiger", "x"], {"tiger": "cat"}, [1, 2, None]),
        (["cat"], {"cat": "bird"}, [0]),
    ],
)
def test_reclass(
    new_classes: list[str], reuse: dict[str, str] | None, sources: list[int | None]
) -> None:
    old = build_model(SMALL, 3, generator=seeded()).eval()
    for layer in old.head.outputs:
        nn.init.normal_(layer.bias, generator=seeded(3))  # so that copied biases show
    before = {key: tensor.clone() for key, tensor in old.state_dict().items()}
    config = ModelConfig(backbone="mobilenet0.25", class_prior=0.25)
    global_state = torch.get_rng_state()
    new = reclass(
        old,
        config,
        old_classes=["bird", "dog", "cat"],
        new_classes=new_classes,
        generator=seeded(1),
        reuse=reuse,
    )
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not new.training
    assert new.num_classes == len(new_classes)
    for stride in range(3):
        ours, theirs = rows(new, stride), rows(old, stride)
        assert ours.shape[1] == 5 + len(new_classes)
        np.testing.assert_array_equal(ours[:, :5], theirs[:, :5])
        for i, source in enumerate(sources):
            if source is None:
                np.testing.assert_allclose(ours[:, 5 + i, -1], math.log(0.25 / 0.75), rtol=1e-6)
                assert 0.03 < ours[:, 5 + i, :-1].std() < 0.05  # U(-0.07, 0.07)
            else:
                np.testing.assert_array_equal(ours[:, 5 + i], theirs[:, 5 + source])
    after, made = old.state_dict(), new.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    for key, tensor in after.items():
        if "outputs" not in key:
            assert torch.equal(made[key], tensor)
            assert made[key].data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize(
    ("reuse", "message"),
    [({"lion": "cat"}, "no new class 'lion'"), ({"tiger": "cot"}, "no old class 'cot'.*'cat'")],
)
def test_reclass_names_the_class_that_is_not_there(reuse: dict[str, str], message: str) -> None:
    model = build_model(SMALL, 1, generator=seeded())
    with pytest.raises(UserError, match=message):
        reclass(
            model,
            SMALL,
            old_classes=["cat"],
            new_classes=["tiger"],
            generator=seeded(),
            reuse=reuse,
        )
