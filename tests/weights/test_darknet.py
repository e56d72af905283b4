"""Darknet's .weights files: what the official one computes, and every network and beginning."""

from __future__ import annotations

import errno
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.weights.darknet_files import (
    DARKNET_INPUT,
    FULL,
    SPP,
    TINY,
    empty_file,
    first_convolution,
    first_layers,
    floats_of,
    made,
    seeded,
    state_names,
    there_and_back,
    tiny_file,
    write_floats,
)
from triscale.anchors import make_grid
from triscale.data.classes import COCO_CLASSES, VOC_CLASSES
from triscale.model.yolo import ModelConfig, YOLOv3, build_model
from triscale.pixels import InputConfig
from triscale.weights.contents import Weights, WeightsInfo, with_normalisation
from triscale.weights.darknet import is_darknet, read_darknet, write_darknet
from triscale.weights.darknet_cfg import cfg_text
from triscale.weights.darknet_layers import Network, classifier, layers


def load(weights: Weights) -> YOLOv3:
    model = build_model(weights.info.model, len(weights.info.classes), generator=seeded())
    missing, unexpected = model.load_state_dict(weights.tensors, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval()


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """As usual, but nothing stays: networks are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def official(shared: Path) -> Weights:
    return read_darknet(shared / "weights" / "yolov3-tiny.weights")


# --- what Darknet computes


@pytest.mark.parametrize("picture", ["dog", "person", "street_small"])
def test_tiny_computes_what_darknet_does(picture: str, official: Weights, shared: Path) -> None:
    model = load(official)
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
    # Rounding alone gives 2e-5; Darknet's variances taken as ours would give 6e-4.
    np.testing.assert_allclose(actual[:, 4:], expected[:, 4:], rtol=5e-5, atol=1e-7)


def test_official_file(official: Weights) -> None:
    expected = WeightsInfo(COCO_CLASSES, TINY, 416, DARKNET_INPUT, {}, named=False)
    assert official.info == expected
    assert sorted(official.tensors) == sorted(state_names(TINY, 80))


def test_official_file_comes_back(official: Weights, shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.weights"
    write_darknet(path, official)
    assert path.read_bytes()[:20] == struct.pack("<3iQ", 0, 2, 0, 0)
    original = floats_of(shared / "weights" / "yolov3-tiny.weights")
    np.testing.assert_array_equal(floats_of(path), original)  # its variances are above 0.01
    assert (tmp_path / "again.names").read_text().split("\n")[79:] == ["toothbrush", ""]
    assert read_darknet(path).info == official.info._replace(named=True)


def test_official_file_without_a_cfg(official: Weights, shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.weights"
    path.symlink_to(shared / "weights" / "yolov3-tiny.weights")
    alone = read_darknet(path)
    assert alone.info == official.info
    assert all(torch.equal(alone.tensors[name], t) for name, t in official.tensors.items())


def test_older_header(shared: Path, tmp_path: Path) -> None:
    path = write_floats(
        tmp_path / "x.weights",
        floats_of(shared / "weights" / "yolov3-tiny.weights"),
        struct.pack("<4i", 0, 1, 0, 32013312),
    )
    assert read_darknet(path).info.classes == COCO_CLASSES


# --- the normalisation


def test_variances_keep_the_function(tmp_path: Path) -> None:
    floats = first_convolution(0, 1e-12, 1e-6, 9.99e-6, 1e-5, 1, 1e30)
    tensors = read_darknet(write_floats(tmp_path / "x.weights", floats)).tensors
    beta, gamma, mean, variance = floats[:64].reshape(4, 16).astype(np.float64)
    name = "backbone.stages.0.0.norm"
    x = torch.linspace(-2, 2, 50, dtype=torch.float64).view(-1, 1).expand(-1, 16)
    actual = functional.batch_norm(
        x,
        *(tensors[f"{name}.{leaf}"].double() for leaf in ("running_mean", "running_var")),
        *(tensors[f"{name}.{leaf}"].double() for leaf in ("weight", "bias")),
        eps=1e-5,
    )
    expected = gamma * (x.numpy() - mean) / (np.sqrt(variance) + 1e-6) + beta
    np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-7, atol=1e-12)
    ours = tensors[f"{name}.running_var"].numpy()
    assert (ours[:4] == 0).all()  # 9.99e-6 is the largest that ours can't say
    assert (ours[4:7] > 0).all()
    same = tensors[f"{name}.weight"].numpy() == floats[16:32]
    assert (same == (ours > 0)).all()  # gamma is touched only where it must be


def test_variances_come_back(tmp_path: Path) -> None:
    """Bit for bit, but for those just below a power of two, whose last bit may go."""
    for seed in range(50):
        exponents = np.random.default_rng(seed).uniform(-4.9, 5, 16)
        floats = first_convolution(*10**exponents)
        np.testing.assert_array_equal(there_and_back(tmp_path, floats), floats)
    floats = first_convolution(*np.nextafter(2 ** np.arange(16, dtype=np.float32), np.float32(0)))
    again = there_and_back(tmp_path, floats)
    np.testing.assert_array_max_ulp(again[48:64], floats[48:64], maxulp=1)
    again[48:64] = floats[48:64]
    np.testing.assert_array_equal(again, floats)


def test_small_variances_come_back_as_the_same_function(tmp_path: Path) -> None:
    first = read_darknet(write_floats(tmp_path / "x.weights", first_convolution(0, 1e-8)))
    write_darknet(tmp_path / "y.weights", first)
    again = read_darknet(tmp_path / "y.weights")
    for name, tensor in first.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-6, atol=1e-11)


# --- networks and their beginnings


@pytest.mark.parametrize(
    ("name", "num_floats", "config", "num_tensors"),
    [
        ("yolov3-tiny.conv.15", 7_743_344, TINY, 9 * 5),
        ("yolov3-tiny.conv.11", 1_575_792, TINY, 6 * 5),
        ("darknet53.conv.74", (162_482_580 - 20) // 4, FULL, 52 * 5),
        ("yolov3.conv.81", 56_367_712, FULL, 58 * 5),
        ("yolov3-spp.conv.88", 57_418_336, SPP, 59 * 5),
        ("darknet53.weights", 40_620_640 + 1_025_000, FULL, 52 * 5),  # a classifier
    ],
)
def test_beginnings(
    name: str, num_floats: int, config: ModelConfig, num_tensors: int, tmp_path: Path
) -> None:
    weights = read_darknet(empty_file(tmp_path / name, num_floats))
    assert weights.info == WeightsInfo((), config, 416, DARKNET_INPUT, {})
    assert len(weights.tensors) == num_tensors
    assert set(weights.tensors) <= set(state_names(config))


def test_the_cfg_decides(tmp_path: Path) -> None:
    """The first layers are the same in several networks; the .cfg also gives size and anchors."""
    config = replace(SPP, anchors=tuple(((w, 9.0),) for w in (3.0, 2.0, 1.0)))
    text = cfg_text(Network(config, 3, layers(config, 3), 320, "stretch"), path=tmp_path)
    path = write_floats(tmp_path / "x.conv.1", np.ones(32 * (4 + 27), np.float32))
    assert read_darknet(path).info == WeightsInfo((), FULL, 416, DARKNET_INPUT, {})
    (tmp_path / "other.cfg").write_text(text)
    expected = WeightsInfo((), config, 320, InputConfig("unit", "stretch"), {})
    assert read_darknet(path, cfg=tmp_path / "other.cfg").info == expected
    (tmp_path / "x.cfg").write_text(text)
    (tmp_path / "x.names").write_text("not for a beginning")
    assert read_darknet(path).info == expected


def test_a_classifier_with_its_cfg(tmp_path: Path) -> None:
    text = cfg_text(Network(FULL, 0, classifier(), 256), path=tmp_path) + "\n[softmax]\ngroups=1\n"
    (tmp_path / "darknet53.cfg").write_text(text)
    info = WeightsInfo((), FULL, 256, DARKNET_INPUT, {})
    for num_floats in (41_645_640, 40_620_640):
        weights = read_darknet(empty_file(tmp_path / "darknet53.weights", num_floats))
        assert weights.info == info
        assert len(weights.tensors) == 260


def test_spp_runs(tmp_path: Path) -> None:
    weights = made(SPP, ("a", "b"))
    path = tmp_path / "spp.weights"
    write_darknet(path, weights)
    (tmp_path / "spp.cfg").unlink()
    (tmp_path / "spp.names").unlink()
    again = read_darknet(path)
    assumed = ("class0", "class1")
    assert again.info == weights.info._replace(classes=assumed, size=416, named=False)
    assert list(again.tensors) != state_names(SPP, 2)  # the file has its own order
    assert sorted(again.tensors) == sorted(state_names(SPP, 2))
    assert again.tensors["head.blocks.0.body.4.conv.weight"].shape == (512, 2048, 1, 1)
    images = torch.rand(1, 3, 64, 64, generator=seeded())
    with torch.inference_mode():
        expected, actual = load(weights)(images), load(again)(images)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("num_classes", "names"),
    [(20, VOC_CLASSES), (3, ("class0", "class1", "class2")), (10_000, None)],
)
def test_any_number_of_classes(
    num_classes: int, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    path = empty_file(tmp_path / "x.weights", 8_673_934 + 2310 * num_classes)
    weights = read_darknet(path)
    assert weights.info.model == TINY
    assert len(weights.info.classes) == num_classes
    assert names is None or weights.info.classes == names


# --- class names


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        (None, None, ("class0", "class1", "class2")),
        (None, ["p", "q", "r"], ("p", "q", "r")),
        ("a\nb c\nd", None, ("a", "b c", "d")),
        ("a\r\nb\r\nc\r\n\r\n\n", None, ("a", "b", "c")),
        ("\ufeffå\nß\n猫\n", None, ("å", "ß", "猫")),
        ("wrong number", ["p", "q", "r"], ("p", "q", "r")),
    ],
)
def test_class_names(
    text: str | None, given: list[str] | None, expected: tuple[str, ...], tmp_path: Path
) -> None:
    path = tiny_file(tmp_path)
    if text is not None:
        (tmp_path / "x.names").write_bytes(text.encode())
    assert read_darknet(path, classes=given).info.classes == expected


# --- writing


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", False),
        ("yolov3.weights", True),
        ("darknet53.conv.74", True),
        ("yolov3.weights.gz", False),
        ("x.conv.74.npz", False),
        ("x.conv.a", False),
        ("yolov3.params", False),
    ],
)
def test_names_of_files(name: str, expected: bool) -> None:
    assert is_darknet(Path("folder.weights", name) if name else Path()) is expected


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_whole_networks_with_their_cfg(fit: str, tmp_path: Path) -> None:
    config = replace(TINY, anchors=(((9.0, 8.5),), ((4.0, 5.0),)))
    weights = made(config, ("a b", "ç"), normalise="unit", fit=fit)
    write_darknet(tmp_path / "x.weights", weights)
    assert {path.name for path in tmp_path.iterdir()} == {"x.weights", "x.cfg", "x.names"}
    assert f"letter_box={int(fit == 'letterbox')}\n" in (tmp_path / "x.cfg").read_text()
    again = read_darknet(tmp_path / "x.weights")
    assert again.info == weights.info
    for name, tensor in again.tensors.items():
        torch.testing.assert_close(tensor, weights.tensors[name], rtol=2e-7, atol=0)


def test_another_normalisation_is_folded(tmp_path: Path) -> None:
    weights = made(TINY, ("a",), normalise="imagenet", fit="letterbox")
    write_darknet(tmp_path / "x.weights", weights)
    again = read_darknet(tmp_path / "x.weights")
    folded = with_normalisation(weights, "unit")
    assert again.info == folded.info
    for leaf in ("conv.weight", "norm.running_mean"):
        name = f"backbone.stages.0.0.{leaf}"
        assert torch.equal(again.tensors[name], folded.tensors[name])
        assert not torch.equal(again.tensors[name], weights.tensors[name])


@pytest.mark.parametrize("number", [1, 7, 9])
def test_beginnings_are_written_alone(number: int, tmp_path: Path) -> None:
    weights = first_layers(made(TINY, ("a",)), number)
    weights = weights._replace(info=weights.info._replace(size=300))  # only a .cfg would mind
    write_darknet(tmp_path / "x.conv.9", weights)
    assert [path.name for path in tmp_path.iterdir()] == ["x.conv.9"]
    again = read_darknet(tmp_path / "x.conv.9")
    assert again.info == weights.info._replace(size=416)
    assert list(again.tensors) == list(weights.tensors)


OTHER_ANCHORS = (((80.0, 80.0), (100.0, 60.0)), ((20.0, 20.0), (10.0, 30.0)))


@pytest.mark.parametrize("name", ["x", "x_final", "x_last", "x_best", "x_1000"])
def test_the_cfg_of_a_training_is_found(name: str, tmp_path: Path) -> None:
    """Darknet names its weights after the .cfg, with something behind."""
    weights = made(ModelConfig("tiny", anchors=OTHER_ANCHORS), ("a", "b"))
    write_darknet(tmp_path / "x.weights", weights)
    path = (tmp_path / "x.weights").rename(tmp_path / f"{name}.weights")
    info = read_darknet(path).info
    assert (info.classes, info.model.anchors, info.named) == (("a", "b"), OTHER_ANCHORS, True)


def test_weights_are_never_without_their_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("triscale.weights.darknet.replace_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        write_darknet(tmp_path / "x.weights", made(TINY, ("a", "b")))
    assert {path.name for path in tmp_path.iterdir()} == {"x.cfg", "x.names"}
