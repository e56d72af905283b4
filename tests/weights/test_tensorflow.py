"""Google's MobileNet v1: our cells compute what TensorFlow's do, but for what is said to differ.

The oracle is the network as published, written out below with torch's functions, on the raw arrays.
What it sees in the pictures can be told by ImageNet's list of 1000 classes.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from triscale.errors import UserError
from triscale.model.mobilenet import MobileNet
from triscale.pixels import MEAN, STD, InputConfig
from triscale.weights import tensorflow
from triscale.weights.tensorflow import read_tensorflow

Arrays = Mapping[str, NDArray[Any]]
STRIDED = (0, 2, 4, 6, 12)  # layers with a stride of 2
TAPS = (5, 11, 13)  # after these, strides 8, 16 and 32 end
MALAMUTE, BALD_EAGLE, OX = 249, 22, 345


def oracle(
    arrays: Arrays,
    images: Tensor,
    *,
    same: bool = True,
    clip: bool = True,
    border: Tensor | None = None,
) -> list[Tensor]:
    """(B, 3, H, W) from -1 to 1 -> TensorFlow's maps at strides 32, 16, 8.

    With `same` padded as TensorFlow does, else by 1 all around; with `clip` ReLU6, else ReLU. The
    picture is padded with `border`, by default with zeros.
    """
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    x = images if border is None else images - border
    maps: list[Tensor] = []
    for layer in range(14):
        for part in ("_depthwise", "_pointwise") if layer else ("",):
            name = f"Conv2d_{layer}{part}"
            weight = tensors[f"{name}.conv.weight"]
            stride = 2 if layer in STRIDED and part != "_pointwise" else 1
            if weight.shape[-1] == 3:
                x = functional.pad(x, _same(x.shape, stride) if same else (1, 1, 1, 1))
            if border is not None and layer == 0:
                x = x + border
            groups = x.shape[1] if part == "_depthwise" else 1
            x = functional.conv2d(x, weight, stride=stride, groups=groups)
            statistics = [tensors[f"{name}.bn.{leaf}"] for leaf in ("running_mean", "running_var")]
            scale, shift = (tensors[f"{name}.bn.{leaf}"] for leaf in ("weight", "bias"))
            x = functional.batch_norm(x, *statistics, weight=scale, bias=shift, eps=1e-3)
            x = functional.relu6(x) if clip else functional.relu(x)
        if layer in TAPS:
            maps.append(x)
    return maps[::-1]


def _same(shape: torch.Size, stride: int) -> list[int]:
    """TensorFlow's padding of a 3x3 kernel: left, right, top, bottom."""
    pads: list[int] = []
    for side in (shape[-1], shape[-2]):
        total = max((-(-side // stride) - 1) * stride + 3 - side, 0)
        pads += [total // 2, total - total // 2]
    return pads


def pooled(maps: list[Tensor]) -> Tensor:
    return maps[0].mean((2, 3))[0]


def normalised(pictures: Tensor) -> Tensor:
    """0..1 -> what our networks are given."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pictures - mean) / std


@pytest.fixture(scope="module")
def path(shared: Path) -> Path:
    return shared / "weights" / "mobilenet_v1_1.0_224_imagenet.npz"


@pytest.fixture(scope="module")
def arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def backbone(path: Path) -> MobileNet:
    network = MobileNet(1.0).eval().requires_grad_(False)
    tensors = read_tensorflow(path).tensors
    ours = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    missing, unexpected = network.load_state_dict(ours, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return network


def picture(shared: Path, name: str) -> Tensor:
    """(1, 3, 224, 224) in 0..1: the middle of a picture."""
    image = cv2.imread(str(shared / "data" / "pictures" / f"{name}.jpg"), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    small = cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small).permute(2, 0, 1)[None] / 255


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of its map."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "label", "similarity", "both"),
    [("dog", MALAMUTE, 0.77, 1), ("eagle", BALD_EAGLE, 0.80, 4), ("horses", OX, 0.69, 2)],
)
def test_pictures(
    name: str,
    label: int,
    similarity: float,
    both: int,
    shared: Path,
    arrays: Arrays,
    backbone: MobileNet,
) -> None:
    """Equal to the oracle with our padding and ReLU, at the borders too; how near to the exact one.

    `similarity` is the cosine of the pooled maps, `both` how many of the five best classes agree.
    """
    image = picture(shared, name)
    exact = oracle(arrays, 2 * image - 1)
    ours = backbone(normalised(image))
    mean_colour = 2 * torch.tensor(MEAN)[:, None, None] - 1
    as_ours = oracle(arrays, 2 * image - 1, same=False, clip=False, border=mean_colour)
    assert difference(ours, as_ours) < 1e-5
    grey_border = oracle(arrays, 2 * image - 1, same=False, clip=False)
    assert 0.01 < difference(ours, grey_border) < 0.15, "the border can't be folded"
    assert functional.cosine_similarity(pooled(ours), pooled(grey_border), dim=0) > 0.998

    def best(maps: list[Tensor]) -> list[int]:
        logits = torch.from_numpy(arrays["fc.weight"]) @ pooled(maps)
        return (logits + torch.from_numpy(arrays["fc.bias"])).topk(5).indices.tolist()

    assert best(exact)[0] == label
    found = float(functional.cosine_similarity(pooled(ours), pooled(exact), dim=0))
    assert found == pytest.approx(similarity, abs=0.02)
    assert len(set(best(ours)) & set(best(exact))) == both
    # most of the distance is ReLU6, less is padding: each of the two alone
    unclipped = pooled(oracle(arrays, 2 * image - 1, clip=False))
    padded = pooled(oracle(arrays, 2 * image - 1, same=False))
    assert functional.cosine_similarity(unclipped, pooled(exact), dim=0) < 0.85
    assert functional.cosine_similarity(padded, pooled(exact), dim=0) > 0.9


def test_the_padding_is_a_shift(shared: Path, arrays: Arrays, backbone: MobileNet) -> None:
    """Away from the border our map of a picture without its first 31 rows and columns is theirs."""
    image = functional.interpolate(picture(shared, "eagle"), (480, 480), mode="bilinear")
    theirs = oracle(arrays, 2 * image - 1, clip=False)[0]
    ours = backbone(normalised(image[..., 31:, 31:]))[0]
    inner = slice(6, 9)  # the 315 pixels that such a cell sees lie inside
    assert difference([ours[..., inner, inner]], [theirs[..., inner, inner]]) < 1e-5
    unshifted = backbone(normalised(image))[0]
    assert difference([unshifted[..., inner, inner]], [theirs[..., inner, inner]]) > 0.1


def test_what_is_known(path: Path) -> None:
    tensors, info = read_tensorflow(path)
    assert (info.classes, info.size, info.input) == ((), 224, InputConfig())
    assert info.model.backbone == "mobilenet1.0"
    assert len(tensors) == 27 * 5
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def small(width: float = 0.25) -> dict[str, NDArray[Any]]:
    """Arrays of a narrow network, named as TensorFlow names them: table 1 of the paper."""
    channels = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"Conv2d_0": (int(32 * width), 3, 3, 3)}
    for i in range(1, 14):
        before, after = int(channels[i - 1] * width), int(channels[i] * width)
        shapes[f"Conv2d_{i}_depthwise"] = (before, 1, 3, 3)
        shapes[f"Conv2d_{i}_pointwise"] = (after, before, 1, 1)
    made: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        made[f"{name}.conv.weight"] = generator.normal(size=shape).astype(np.float32)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            made[f"{name}.bn.{leaf}"] = generator.uniform(size=shape[0]).astype(np.float32)
    return made


@pytest.mark.parametrize("width", [0.1, 0.25, 0.75])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_other_widths(width: float, save: Any, tmp_path: Path) -> None:
    made = small(width)
    pointwise = "Conv2d_1_pointwise.conv.weight"
    stored = {**made, pointwise: np.asfortranarray(made[pointwise])}
    save(tmp_path / "a.npz", **stored)
    tensors, info = read_tensorflow(tmp_path / "a.npz")
    assert info.model.backbone == f"mobilenet{width}"
    ours = tensors["backbone.stages.0.0.pointwise.conv.weight"]
    np.testing.assert_array_equal(ours.numpy(), made[pointwise])
    variance = tensors["backbone.stages.2.1.pointwise.norm.running_var"]
    theirs = made["Conv2d_13_pointwise.bn.running_var"]
    np.testing.assert_allclose(variance.numpy() + 1e-5, theirs + 1e-3, rtol=1e-6)


def npz(members: Mapping[str, bytes | NDArray[Any]]) -> bytes:
    """An archive of arrays, or of bytes in place of an array's file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            data = io.BytesIO()
            if isinstance(content, bytes):
                data.write(content)
            else:
                np.save(data, content, allow_pickle=True)
            archive.writestr(f"{name}.npy", data.getvalue())
    return stream.getvalue()


def header(text: str, *, data: int = 0, version: int = 1) -> bytes:
    """A .npy file with a header of this text, and so many zero bytes of data."""
    length = len(text).to_bytes(2, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + bytes(data)


STEM = "Conv2d_0.conv.weight"
FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
NONE = "expected a whole .npz with arrays of numbers, found none"
STRANGE = f"'{STEM}.npy': expected a plain array, found another header"
GONE = np.zeros(0)  # stands for an array that isn't there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.fromkeys(small(), GONE), f"135 arrays do not fit mobilenet1.0, .* '{STEM}.npy'"),
        ({STEM: GONE}, rf"1 arrays .*'{STEM}.npy' with shape none, expected \(8, 3, 3, 3\)"),
        ({"evil": np.zeros(3, "f4")}, r"'evil.npy' with shape \(3,\), expected none"),
        ({STEM: np.zeros((8, 3, 3), "f4")}, r"with shape \(8, 3, 3\), expected \(8, 3, 3, 3\)"),
        ({STEM: np.zeros((8, 3, 3, 3))}, "expected float32, found float64"),
        ({STEM: np.zeros((8, 3, 3, 3), ">f4")}, "expected float32, found >f4"),
        ({STEM: np.array([{}], object)}, "expected float32, found object"),
        ({"fc.weight": np.array([{}], object)}, "expected float32, found object"),
        ({STEM: np.full((8, 3, 3, 3), np.nan, "f4")}, "backbone.stem.conv.weight has values"),
        ({STEM: b""}, STRANGE),
        ({STEM: b"cos\nsystem\n(S'true'\ntR."}, STRANGE),  # a pickle
        ({STEM: header(FLOATS % "(8, 3, 3, 3)", data=863)}, r"expected \d+ bytes by its shape, fo"),
        ({STEM: header(FLOATS % "(8, 3, 3, 3)", data=865)}, r"expected \d+ bytes by its shape, fo"),
        ({STEM: header(FLOATS % "(99999999999,)", data=8)}, r"expected \d+ bytes by its shape, fo"),
        ({STEM: header(FLOATS % "(-216,)", data=864)}, r"expected -\d+ bytes by its shape, fo"),
        ({STEM: header(FLOATS % "(8L, 3L, 3L, 3L)", data=864)}, STRANGE),  # of Python 2
        ({STEM: header("{" * 250, data=864)}, STRANGE),
        ({STEM: header("{[]: 1}")}, STRANGE),
        ({STEM: header("{" * 5000, data=864)}, STRANGE),
        ({STEM: header("-" * 9000 + "1", data=864)}, STRANGE),
        ({STEM: header(" " * 20_000, data=864)}, STRANGE),
        ({STEM: header(FLOATS % "(1,)", version=2)}, r"expected version \(1, 0\) of .npy, found"),
    ],
)
def test_wrong_arrays(
    change: dict[str, bytes | NDArray[Any]], message: str, tmp_path: Path
) -> None:
    members = {k: v for k, v in {**small(), **change}.items() if v is not GONE}
    path = tmp_path / "a.npz"
    path.write_bytes(npz(members))
    with pytest.raises(UserError, match=message) as caught:
        read_tensorflow(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


def test_wrong_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match=r"a.npz: can't be read \(No such file or directory\)"):
        read_tensorflow(path)
    with pytest.raises(UserError, match=r"can't be read \(Is a directory\)"):
        read_tensorflow(tmp_path)
    whole = npz(small())
    for content in (b"", b"\x93NUMPY", whole[: len(whole) // 2], whole[100:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=NONE):
            read_tensorflow(path)
    path.write_bytes(npz({}))
    with pytest.raises(UserError, match="135 arrays do not fit"):
        read_tensorflow(path)
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):  # zipfile warns
            archive.writestr("a.npy", header(FLOATS % "()", data=4))
    with pytest.raises(UserError, match="expected each array once, found two of one name"):
        read_tensorflow(path)
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", header(FLOATS % "()", data=4))
    with pytest.raises(UserError, match="unknown compression 14"):
        read_tensorflow(path)
    path.write_bytes(whole)
    monkeypatch.setattr(tensorflow, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="expected at most 1000 bytes of arrays, found"):
        read_tensorflow(path)


@pytest.mark.parametrize("seed", range(2))
def test_damaged_archives(seed: int, tmp_path: Path) -> None:
    """Damage to bytes that say something ends in the one kind of error."""
    generator = np.random.default_rng(seed)
    whole = np.frombuffer(npz(small(1 / 32)), np.uint8)
    path = tmp_path / "a.npz"
    path.write_bytes(whole.tobytes())
    expected = read_tensorflow(path).tensors
    refused = 0
    for _ in range(40):
        data = whole.copy()
        data[generator.integers(len(data), size=generator.integers(1, 20))] ^= 0x40
        path.write_bytes(data.tobytes())
        try:
            found = read_tensorflow(path).tensors
        except UserError:
            refused += 1
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert refused > 20
