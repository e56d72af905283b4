"""GluonCV's files: its own, read and written byte for byte, its names, and files that aren't its.

The networks are large, so most tests exchange arrays that repeat one number, without files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.golden_networks import golden_images, reference_names
from triscale.anchors import YOLO3_ANCHORS
from triscale.errors import UserError
from triscale.model.yolo import ModelConfig, build_model, skeleton
from triscale.pixels import InputConfig
from triscale.weights import gluoncv
from triscale.weights.contents import Weights, WeightsInfo, with_normalisation
from triscale.weights.gluoncv import read_gluoncv, write_gluoncv
from triscale.weights.mxnet import read_ndarrays, write_ndarrays

Arrays = dict[str, NDArray[np.generic]]
PATH = Path("net.params")
NETWORKS = [
    f"yolo3_{backbone}_{data}"
    for backbone in ("darknet53", "mobilenet1.0", "mobilenet0.25")
    for data in ("voc", "coco")
]
BACKBONES = ("darknet53", "mobilenet1.0", "mobilenet0.25")
ANCHORS = (((90.0, 80.5),), ((40.0, 30.0),), ((9.0, 8.0),))


def repeated(number: float, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of any size in the memory of one number."""
    return torch.tensor(float(number)).expand(shape)


def numbered(params: list) -> Arrays:
    """Arrays by the reference's names, in its order, each with its own number; usual anchors."""
    arrays: Arrays = {}
    for number, (name, shape, *_) in enumerate(params, 1):
        arrays[name] = repeated(number, tuple(shape)).numpy()
        if name.endswith(".anchors"):
            arrays[name] = np.array([[YOLO3_ANCHORS[int(name.split(".")[1])]]], np.float32)
    return arrays


def read(arrays: Arrays, *, classes: tuple[str, ...] | None = None) -> Weights:
    """What `read_gluoncv` makes of a file with these arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gluoncv, "read_ndarrays", lambda path: dict(arrays))
        return read_gluoncv(PATH, classes=classes)


def written(weights: Weights) -> Arrays:
    """What `write_gluoncv` would put into a file."""
    kept: list[Arrays] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gluoncv, "write_ndarrays", lambda path, arrays: kept.append(arrays))
        write_gluoncv(PATH, weights)
    return kept[0]


def numbers(weights: Weights) -> dict[str, float]:
    return {name: float(tensor.flatten()[0]) for name, tensor in weights.tensors.items()}


def blank(config: ModelConfig, num_classes: int, **changes: object) -> Weights:
    """Weights of a network, all ones; `num_classes` 0 is the backbone alone."""
    tensors = {
        key: repeated(1, tuple(tensor.shape))
        for key, tensor in skeleton(config, max(num_classes, 1)).state_dict().items()
        if not key.endswith("tracked") and (num_classes or key.startswith("backbone."))
    }
    names = tuple(f"c{i}" for i in range(num_classes))
    info = WeightsInfo(names, config, 416, InputConfig(), {})
    return Weights(tensors, info._replace(**changes))


@pytest.fixture(scope="module")
def small(golden: Path) -> Arrays:
    return numbered(reference_names(golden)["yolo3_mobilenet0.25_voc"]["params"])


@pytest.mark.golden
def test_the_references_file_comes_back_byte_for_byte(golden: Path, tmp_path: Path) -> None:
    original = golden / "yolo3_mobilenet0.25_voc_golden.params"
    weights = read_gluoncv(original)
    assert weights.info.model == ModelConfig(backbone="mobilenet0.25")
    assert weights.info.input == InputConfig(normalise="imagenet", fit="stretch")
    assert weights.info.size == 416
    write_gluoncv(tmp_path / "copy.params", weights)
    assert (tmp_path / "copy.params").read_bytes() == original.read_bytes()


@pytest.mark.golden
@pytest.mark.parametrize("case", [0, 1])
def test_a_network_from_the_references_file_computes_what_the_reference_does(
    case: int, golden: Path
) -> None:
    tensors, info = read_gluoncv(golden / "yolo3_mobilenet0.25_voc_golden.params")
    model = build_model(info.model, len(info.classes), generator=torch.Generator()).eval()
    left_out, unknown = model.load_state_dict(tensors, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in left_out)
    assert not unknown
    with np.load(golden / "net_mobilenet0.25.npz") as arrays, torch.inference_mode():
        images = golden_images(golden, arrays[f"case{case}_x_seed_shape"])
        for stride, actual in zip((32, 16, 8), model.head(model.backbone(images)), strict=True):
            expected = arrays[f"case{case}_pred_stride{stride}"]
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.golden
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_by_name(network: str, golden: Path) -> None:
    """Recognised with its classes; written with the reference's names and shapes in its order."""
    reference = reference_names(golden)[network]
    arrays = numbered(reference["params"])
    weights = read(arrays)
    assert f"yolo3_{weights.info.model.backbone}" == network.rpartition("_")[0]
    assert weights.info.model.anchors == ()
    assert list(weights.info.classes) == reference["classes"]
    result = written(weights)
    assert [(n, list(a.shape)) for n, a in result.items()] == [
        (name, shape) for name, shape, *_ in reference["params"]
    ]
    for name, array in result.items():
        assert array.dtype == np.float32
        if not name.endswith("offsets"):
            assert array.flat[0] == arrays[name].flat[0], name


@pytest.mark.golden
@pytest.mark.parametrize("prefix", ["", "arg:", "aux:"])
@pytest.mark.parametrize("network", NETWORKS[1::2])
def test_older_names(network: str, prefix: str, golden: Path) -> None:
    """The names of the parameters themselves, of which the reference's table has the ends."""
    params = reference_names(golden)[network]["params"]
    scopes = {"stages": "darknetv30_" if "darknet" in network else "mobilenet0_"}
    arrays = numbered(params)
    older = {
        prefix + scopes.get(name.split(".")[0], "yolov30_") + tail: arrays[name]
        for name, _, _, _, tail in params
    }
    assert numbers(read(older)) == numbers(read(arrays))


@pytest.mark.golden
@pytest.mark.parametrize("backbone", [*BACKBONES, "mobilenet0.75", "mobilenet0.5"])
def test_backbones(backbone: str, golden: Path) -> None:
    """The list of names of the wide MobileNet, its channels scaled, stands for the others."""
    lists = reference_names(golden)
    known = f"backbone:{backbone if backbone in BACKBONES else 'mobilenet1.0'}"
    width = 1.0 if backbone in BACKBONES else float(backbone.removeprefix("mobilenet"))
    params = [
        (name, [int(n * width) if n not in (1, 3, 1000) else n for n in shape])
        for name, shape, *_ in lists[known]["params"]
    ]
    arrays = numbered(params)
    weights = read(arrays)
    assert weights.info.model == ModelConfig(backbone=backbone)
    assert weights.info.classes == ()
    assert all(name.startswith("backbone.") for name in weights.tensors)
    assert len(weights.tensors) == len(params) - 2  # all but the classifier
    result = written(weights)
    assert list(result) == [name for name, _ in params][:-2]
    for name, array in result.items():
        assert array.shape == arrays[name].shape
        assert array.flat[0] == arrays[name].flat[0], name


@pytest.mark.golden
def test_a_backbone_with_older_names(golden: Path) -> None:
    lists = reference_names(golden)
    arrays = numbered(lists["backbone:mobilenet0.25"]["params"])
    tails = [row[4] for row in lists["yolo3_mobilenet0.25_voc"]["params"]]
    tails = [*tails[: len(arrays) - 2], "dense0_weight", "dense0_bias"]
    older = {f"mobilenet0_{t}": a for t, a in zip(tails, arrays.values(), strict=True)}
    weights = read(older)
    assert weights.info.model.backbone == "mobilenet0.25"
    assert numbers(weights) == numbers(read(arrays))


@pytest.mark.parametrize("backbone", ["mobilenet0.03125", "mobilenet0.1", "mobilenet0.35"])
def test_other_widths(backbone: str) -> None:
    weights = blank(ModelConfig(backbone=backbone), 2)
    assert read(written(weights)).info.model.backbone == backbone


def test_files_of_a_small_network(tmp_path: Path) -> None:
    """Own anchors and classes, weights of any type and memory, counters of batches."""
    config = ModelConfig(backbone="mobilenet0.1", anchors=ANCHORS)
    model = build_model(config, 2, generator=torch.Generator().manual_seed(3))
    model.to(memory_format=torch.channels_last)
    info = WeightsInfo(("cat", "dog"), config, 320, InputConfig(), {})
    write_gluoncv(tmp_path / "x.params", Weights(model.state_dict(), info))
    loaded = read_gluoncv(tmp_path / "x.params", classes=("cat", "dog"))
    assert loaded.info == info._replace(size=416)
    for name, tensor in loaded.tensors.items():
        assert torch.equal(tensor, model.state_dict()[name]), name

    half = {n: a.astype(np.float16) for n, a in read_ndarrays(tmp_path / "x.params").items()}
    write_ndarrays(tmp_path / "half.params", half)
    halves = read_gluoncv(tmp_path / "half.params")
    assert halves.info.classes == ("class0", "class1")
    assert halves.info.model.anchors == ANCHORS
    for name, tensor in halves.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, loaded.tensors[name].half().float()), name


def test_another_normalisation_is_folded_in() -> None:
    weights = blank(ModelConfig(backbone="mobilenet0.1"), 2, input=InputConfig(normalise="unit"))
    expected = with_normalisation(weights, "imagenet").tensors
    got = read(written(weights))
    assert got.info.input == InputConfig()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.tensors.items())
    stem = "backbone.stem.conv.weight"
    assert not torch.equal(got.tensors[stem], weights.tensors[stem])


def without(*names: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {n: a for n, a in arrays.items() if n not in names}


def with_array(name: str, array: NDArray[np.generic]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: array}


def ones(*shape: int, dtype: str = "f4") -> NDArray[np.generic]:
    return np.ones(shape, dtype)


BIAS = "yolo_outputs.0.prediction.bias"
LAST = "stages.2.9.weight"
BAD = {
    "empty": (lambda arrays: {}, r"YOLOv3, Darknet-53 or MobileNet, found 0 others$"),
    "another network": (
        lambda arrays: {"fc.weight": ones(2, 2)},
        r"found 1 others, first 'fc.weight'$",
    ),
    "missing": (
        without("stages.0.4.gamma", "yolo_blocks.1.tip.1.beta"),
        r"2 tensors do not fit mobilenet0.25, the first is 'stages.0.4.gamma': "
        r"expected shape \(8,\), found none",
    ),
    "unexpected": (
        with_array("yolo_blocks.3.tip.1.beta", ones(4)),
        r"1 tensors .* 'yolo_blocks.3.tip.1.beta': expected none, found shape \(4,\)",
    ),
    "shape": (
        with_array("stages.0.4.gamma", ones(9)),
        r"1 tensors .* expected shape \(8,\), found shape \(9,\)",
    ),
    "no width": (without(LAST), r"do not fit mobilenet1.0, the first is"),
    "width 0": (with_array(LAST, ones(31, 31, 1, 1)), r"do not fit mobilenet1.0, the first is"),
    "other deepest map": (with_array(LAST, ones(256, 128, 1, 1)), r"do not fit mobilenet1.0"),
    "no anchors": (
        without("yolo_outputs.1.anchors"),
        r"yolo_outputs.1.anchors: expected shape \(1, 1, 3, 2\), found none",
    ),
    "anchors' shape": (with_array("yolo_outputs.2.anchors", ones(1, 1, 2, 2)), r"found shape"),
    "anchors of size 0": (
        with_array("yolo_outputs.0.anchors", 0 * ones(1, 1, 3, 2)),
        r"anchors: expected sides above 0, found \[\[0.0, 0.0\]",
    ),
    "no bias": (without(BIAS), r"bias: expected 3 x \(5 \+ classes\) values, found none"),
    "bias": (with_array(BIAS, ones(76)), r"bias: .*, found shape \(76,\)"),
    "no classes": (with_array(BIAS, ones(15)), r"bias: .*, found shape \(15,\)"),
    "type": (
        with_array("stages.0.4.gamma", ones(8, dtype="i1")),
        r"stages.0.4.gamma: expected float32 or float16, found int8",
    ),
    "not finite": (
        with_array("stages.0.4.gamma", np.nan * ones(8)),
        r"stages.0.4.gamma has values that are not finite",
    ),
    "infinite half": (
        with_array("stages.0.4.gamma", np.full(8, np.inf, np.float16)),
        r"stages.0.4.gamma has values that are not finite",
    ),
    "twice": (
        with_array("arg:stages.0.4.gamma", ones(8)),
        r"expected each tensor once, found '(arg:)?stages.0.4.gamma' under two names",
    ),
    "long name": (with_array("x" * 999, ones(1)), r"first is 'x{79}: expected none"),
}


@pytest.mark.golden
@pytest.mark.parametrize("case", BAD)
def test_other_files_are_refused_in_one_line(case: str, small: Arrays) -> None:
    change, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        read(change(small))
    assert str(caught.value).startswith("net.params: ")
    assert "\n" not in str(caught.value)


@pytest.mark.golden
def test_the_small_darknet_of_the_golden_files_is_refused(golden: Path) -> None:
    message = r"do not fit darknet53.*'stages.0.0.0.weight': expected shape \(32, .*shape \(4,"
    with pytest.raises(UserError, match=message):
        read_gluoncv(golden / "tiny_golden.params")


@pytest.mark.golden
def test_class_names(golden: Path, small: Arrays) -> None:
    names = tuple(f"n{i}" for i in range(20))
    assert read(small, classes=names).info.classes == names
    with pytest.raises(UserError, match="has 20 classes, 2 names were given"):
        read(small, classes=("cat", "dog"))
    backbone = numbered(reference_names(golden)["backbone:mobilenet0.25"]["params"])
    with pytest.raises(UserError, match="has 0 classes, 1 names were given"):
        read(backbone, classes=("cat",))


SMALL = ModelConfig(backbone="mobilenet0.1")


def part(weights: Weights) -> Weights:
    kept = {n: t for n, t in weights.tensors.items() if not n.startswith("head.outputs.1")}
    return weights._replace(tensors=kept)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            blank(ModelConfig(backbone="tiny"), 2),
            r"\.params: expected a network that GluonCV has too, found YOLOv3-tiny$",
        ),
        (
            blank(ModelConfig(spp=True), 2),
            r"\.params: expected a network that GluonCV has too, found YOLOv3-spp$",
        ),
        (
            blank(replace(SMALL, scale_x_y=2.0), 2),
            r"\.params: expected a network that GluonCV has too, found one trained with model\.sca",
        ),
        (
            part(blank(SMALL, 2)),
            r"2 tensors do not fit mobilenet0.1, the first is 'yolo_outputs.1.prediction.weight': "
            r"expected shape \(21, 256, 1, 1\), found none",
        ),
        (blank(SMALL, 2, classes=("a",)), r"6 tensors .*expected shape \(18, .*shape \(21,"),
        (blank(SMALL, 2, classes=()), r"'head.blocks.* expected none"),
    ],
    ids=["tiny", "spp", "scale_x_y", "a part", "other classes", "no classes"],
)
def test_what_gluoncv_has_no_file_for(weights: Weights, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_gluoncv(tmp_path / "x.params", weights)
    assert list(tmp_path.iterdir()) == []


NAMES = st.one_of(
    st.sampled_from(["", "arg:", "x.y", "conv0_weight", "yolov30_conv7_weight", "output.weight"]),
    st.sampled_from([LAST, BIAS, "yolo_outputs.1.anchors", "features.0.weight", "stages.9.9.beta"]),
    st.text(max_size=8),
)
SHAPES = st.lists(st.sampled_from([1, 2, 3, 15, 75, 256, 10**4]), max_size=4).map(tuple)
EDITS = st.lists(
    st.tuples(st.integers(0, 246), st.booleans(), NAMES, st.none() | SHAPES), max_size=5
)


@pytest.mark.golden
@settings(max_examples=60, deadline=None)
@given(edits=EDITS, kept=st.integers(0, 400))
def test_any_names_and_shapes_are_read_or_refused(edits: list, kept: int, small: Arrays) -> None:
    """Some arrays renamed or copied, some of another shape, the last ones missing."""
    arrays = dict(small)
    for position, copied, name, shape in edits:
        original = list(small)[position]
        if not copied:
            arrays.pop(original, None)
        arrays[name] = small[original] if shape is None else repeated(1, shape).numpy()
    try:
        weights = read(dict(list(arrays.items())[:kept]))
    except UserError:
        return
    assert weights.info.classes or all(n.startswith("backbone.") for n in weights.tensors)
