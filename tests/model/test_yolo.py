"""The detector against the reference's own outputs, its initialisation and its new classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from triscale.anchors import TINY_ANCHORS, YOLO3_ANCHORS
from triscale.config import build, to_dict
from triscale.errors import UserError
from triscale.model.layers import ConvCell
from triscale.model.yolo import ModelConfig, YOLOv3, build_model, reclass, skeleton

SMALL = ModelConfig(backbone="mobilenet0.25")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["mobilenet0.25", "tiny"])
def test_every_parameter_gets_a_gradient(backbone: str) -> None:
    model = build_model(ModelConfig(backbone=backbone), 2, generator=seeded())
    out = model(torch.randn(2, 3, 64, 64, generator=seeded(1)))
    sum(field.square().mean() for field in out).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_own_anchors_in_any_number() -> None:
    anchors = (((9.0, 9.0), (8.0, 2.0)), ((4.0, 5.0), (6.0, 7.0)))
    model = build_model(ModelConfig("tiny", anchors=anchors), 1, generator=seeded()).eval()
    assert model.anchors == anchors
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).objectness.shape == (1, 2 * 4 + 2 * 16)


def test_strides_must_have_equally_many_anchors() -> None:
    config = ModelConfig("tiny", anchors=(((9.0, 9.0),), ((4.0, 5.0), (6.0, 7.0))))
    with pytest.raises(UserError, match="lists of equally many"):
        build_model(config, 1, generator=seeded())


def test_spp_predicts_in_the_same_places() -> None:
    config = ModelConfig("mobilenet0.25", spp=True)
    model = build_model(config, 7, generator=seeded()).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 33, 70)).classes.shape == (2, 3 * (2 * 3 + 3 * 5 + 5 * 9), 7)


@pytest.mark.parametrize(("num_classes", "expected"), [(1, 62_626_966), (80, 63_052_381)])
def test_spp_has_as_many_numbers_as_darknets(num_classes: int, expected: int) -> None:
    state = skeleton(ModelConfig(spp=True), num_classes).state_dict()
    found = sum(t.numel() for key, t in state.items() if not key.endswith("num_batches_tracked"))
    assert found == expected  # yolov3-spp.weights less its header


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
    assert model.head.outputs[0].weight.std().item() == pytest.approx(0.01, rel=0.03)


def test_depthwise_layers_begin_near_the_identity() -> None:
    kernels = {
        init: build_model(
            build(ModelConfig, {"backbone": "mobilenet0.25", "init": init}, where="model"),
            4,
            generator=seeded(),
        )
        .backbone.stages[2][1]
        .depthwise.conv.weight
        for init in ("kaiming", "uniform")
    }
    identity = torch.zeros(3, 3)
    identity[1, 1] = 1
    # 9 weights reach each input, whatever the number of channels; a tenth of that deviation
    deviation = (kernels["kaiming"] - identity).std().item()
    assert deviation == pytest.approx(0.1 * math.sqrt(2 / 9), rel=0.05)
    assert kernels["uniform"].abs().max() <= 0.07, "the reference's"


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
        ({"backbone": "tiny", "spp": True}, "model.spp: the head of YOLOv3-tiny has no place"),
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
