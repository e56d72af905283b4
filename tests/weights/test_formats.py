"""Weights of all formats through one door: reading, loading, converting, fetching by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.file_server import Server, whole, zipped
from triscale.errors import UserError
from triscale.log import Narrator
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import NORMALISATIONS, InputConfig
from triscale.weights import zoo
from triscale.weights.contents import Weights, WeightsInfo
from triscale.weights.formats import (
    convert,
    fetch,
    files_of,
    load_weights,
    read_weights,
    writer_of,
)
from triscale.weights.gluoncv import write_gluoncv

QUIET = Narrator(enabled=False)


def make_weights(
    backbone: str, classes: Sequence[str] = ("cat", "dog"), *, parts: Sequence[str] = ("",)
) -> Weights:
    config = ModelConfig(backbone=backbone, init="kaiming")
    model = build_model(config, max(len(classes), 1), generator=torch.Generator().manual_seed(3))
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(tuple(parts)) and not name.endswith("num_batches_tracked")
    }
    normalise = "unit" if backbone == "tiny" else "imagenet"
    info = WeightsInfo(tuple(classes), config, 96, InputConfig(normalise), {})
    return Weights(tensors, info)


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        ("mobilenet0.1", ("a.params", "b.safetensors", "c.params")),
        ("mobilenet0.1", ("a.safetensors", "b.params", "c.safetensors")),
        ("tiny", ("a.weights", "b.safetensors", "c.weights")),
        ("tiny", ("a.safetensors", "b.weights", "c.safetensors")),
    ],
)
def test_there_and_back(backbone: str, names: Sequence[str], tmp_path: Path) -> None:
    """No number changes but Darknet's variances, in the last place; names and shapes are right."""
    weights = make_weights(backbone)
    paths = [tmp_path / name for name in names]
    writer_of(paths[0])(paths[0], weights)
    for source, target in pairwise(paths):
        convert(source, target, classes=["cat", "dog"])
    back = read_weights(paths[2], classes=["cat", "dog"])
    assert back.tensors.keys() == weights.tensors.keys()
    for name, tensor in back.tensors.items():
        exact = backbone != "tiny" or not name.endswith("running_var")
        torch.testing.assert_close(
            tensor, weights.tensors[name], rtol=0 if exact else 3e-7, atol=0 if exact else 1e-9
        )
    assert back.info.classes == ("cat", "dog")
    model, info = load_weights(paths[0])
    assert not model.training
    assert info.model.backbone == backbone


def test_what_the_source_does_not_know(tmp_path: Path) -> None:
    source, target = tmp_path / "a.params", tmp_path / "b.safetensors"
    write_gluoncv(source, make_weights("mobilenet0.1"))
    assert read_weights(source).info.classes == ("class0", "class1")
    converted = convert(source, target, classes=["x", "y"], size=320, fit="letterbox")
    assert converted.info == read_weights(target).info
    assert (converted.info.classes, converted.info.size) == (("x", "y"), 320)
    assert converted.info.input == InputConfig("imagenet", "letterbox")


def test_from_another_program_to_another(tmp_path: Path) -> None:
    """A Darknet-53 goes from GluonCV's normalisation to Darknet's and computes the same inside."""
    weights = make_weights("darknet53")
    write_gluoncv(tmp_path / "a.params", weights)
    convert(tmp_path / "a.params", tmp_path / "b.weights")
    assert {p.name for p in tmp_path.iterdir()} == {"a.params", "b.weights", "b.cfg", "b.names"}
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    outputs = []
    for path in (tmp_path / "a.params", tmp_path / "b.weights"):
        model, info = load_weights(path)
        assert info.input.normalise == ("imagenet" if path.suffix == ".params" else "unit")
        mean, std = (torch.tensor(v)[:, None, None] for v in NORMALISATIONS[info.input.normalise])
        with torch.inference_mode():
            outputs.append(model.backbone.stem((pixels - mean) / std)[..., 1:-1, 1:-1])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["a.safetensors", "a.params"])
def test_first_layers_are_a_start_only(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    writer_of(path)(path, make_weights("mobilenet0.1", (), parts=["backbone"]))
    assert read_weights(path).info.classes == ()
    with pytest.raises(UserError, match=r"holds the first layers of a network only"):
        load_weights(path)


@pytest.mark.parametrize("name", ["none.pth", "none", "none.h5", "none.onnx", "none.npz.txt"])
def test_unknown_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a weights file named \.safetensors"):
        read_weights(tmp_path / name)
    with pytest.raises(UserError, match=r"expected a name that ends in \.safetensors"):
        writer_of(tmp_path / name)
    with pytest.raises(UserError, match=r"expected a name that ends in"):
        convert(tmp_path / "none.params", tmp_path / name)


@pytest.mark.parametrize("name", ["none.safetensors", "none.params", "none.weights", "none.npz"])
def test_missing_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / name)
    expected = f"{tmp_path / name}: can't be read (No such file or directory"
    assert str(caught.value).startswith(expected)


def test_other_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    writer_of(path)(path, make_weights("mobilenet0.1"))
    with pytest.raises(UserError, match=r"a \.cfg describes Darknet's weights only"):
        read_weights(path, cfg=path)
    with pytest.raises(UserError, match="has 2 classes, 1 names were given"):
        read_weights(path, classes=["a"])


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("a.safetensors", ["a.safetensors"]),
        ("a.params", ["a.params"]),
        ("a.b.weights", ["a.b.weights", "a.b.cfg", "a.b.names"]),
        ("darknet53.conv.74", ["darknet53.conv.74", "darknet53.cfg", "darknet53.names"]),
    ],
)
def test_files_of(name: str, names: list[str]) -> None:
    assert [path.name for path in files_of(Path(name))] == names


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(["x.safetensors", "x.params", "x.weights", "x.npz"]), data=st.binary())
def test_any_bytes_are_an_error_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_safetensors_header_of_any_length(tmp_path: Path) -> None:
    """A length that claims more than there is must not be believed."""
    path = tmp_path / "a.safetensors"
    for length in (0, 7, 8, 100_000_000, 2**31, 2**62, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + b"{}      ")
        with pytest.raises(UserError, match=r"a\.safetensors: "):
            read_weights(path)


# --- fetching ------------------------------------------------------------------------------------


@pytest.fixture
def published(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Weights]:
    """The address of a repository that has a small network as `small`, and that network."""
    weights = make_weights("mobilenet0.1")
    write_gluoncv(tmp_path / "w.params", weights)
    content = (tmp_path / "w.params").read_bytes()
    sha1 = hashlib.sha1(content).hexdigest()
    monkeypatch.setattr(zoo, "ZOO", {"small": sha1})
    monkeypatch.setenv("TRISCALE_CACHE", str(tmp_path / "cache"))
    server.answers = [whole(zipped(content, name=f"small-{sha1[:8]}.params"))]
    return server.mirror, weights


def test_fetch(published: tuple[str, Weights], server: Server) -> None:
    mirror, weights = published
    assert zoo.cached("small") is None
    path = fetch("small", narrator=QUIET, mirror=mirror)
    assert zoo.cached("small") == path
    assert path.name == f"small-{zoo.ZOO['small'][:8]}.safetensors"
    kept = {p.name for p in path.parent.iterdir()} - {".lock"}
    assert kept == {path.name}, "the published file is not kept beside ours"
    tensors = read_weights(path).tensors
    assert all(torch.equal(tensors[name], t) for name, t in weights.tensors.items())
    asked = len(server.asked)
    assert fetch("small", narrator=QUIET, mirror=mirror) == path
    assert len(server.asked) == asked, "what is there is not asked for again"


def test_unknown_names_are_not_fetched() -> None:
    assert zoo.cached("yolo9") is None
    with pytest.raises(UserError, match="no published weights are called 'darknet52'"):
        fetch("darknet52", narrator=QUIET)


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **{"Conv2d_0.conv.weight": np.array([{}], dtype=object)})
    with pytest.raises(UserError, match=r"a\.npz: 'Conv2d_0.conv.weight.npy': expected float32"):
        read_weights(path)
