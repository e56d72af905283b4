"""Weights files: what is in them, and that a wrong one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from triscale.errors import UserError
from triscale.model.yolo import ModelConfig, YOLOv3, build_model
from triscale.pixels import InputConfig
from triscale.weights.contents import Weights, WeightsInfo
from triscale.weights.formats import load_weights, writer_of
from triscale.weights.native import (
    is_whole,
    load_state,
    read_native,
    save_tensors,
    save_weights,
)

CONFIG = ModelConfig(backbone="mobilenet0.1", init="kaiming", objectness_prior=0.01)
INPUT = InputConfig(normalise="unit", fit="letterbox")
INFO = WeightsInfo(("cat", "côté"), CONFIG, 96, INPUT, {"decode": {"keep": 10}})


@pytest.fixture(scope="module")
def model() -> YOLOv3:
    return build_model(CONFIG, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def weights(model: YOLOv3, tmp_path: Path) -> Path:
    save_weights(tmp_path / "w.safetensors", model, INFO)
    return tmp_path / "w.safetensors"


def test_round_trip(model: YOLOv3, weights: Path) -> None:
    loaded, info = load_weights(weights)
    assert info == INFO
    assert not loaded.training
    assert loaded.anchors == model.anchors
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in loaded.state_dict().items())


def test_the_file_is_plain_safetensors(model: YOLOv3, weights: Path) -> None:
    """Read with the library's own numpy reader: names, values and the header as documented."""
    with safe_open(weights, framework="numpy") as file:
        header = file.metadata()
        kernel = file.get_tensor("head.outputs.0.weight")
    np.testing.assert_array_equal(kernel, model.state_dict()["head.outputs.0.weight"].numpy())
    assert json.loads(header["classes"]) == ["cat", "côté"]
    assert json.loads(header["size"]) == 96
    assert len(json.loads(header["anchors"])) == 3
    assert header.keys() == {
        "format",
        "classes",
        "model",
        "anchors",
        "named",
        "size",
        "input",
        "recipe",
        "sha256",
    }


def test_equal_content_is_equal_bytes(model: YOLOv3, weights: Path) -> None:
    """The library alone writes the header's texts in another order each time."""
    content = weights.read_bytes()
    for _ in range(5):
        save_weights(weights, model, INFO)
        assert weights.read_bytes() == content
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])["__metadata__"]
    assert json.loads(header["classes"]) == ["cat", "côté"]


def test_memory_order_is_not_stored(model: YOLOv3, weights: Path) -> None:
    again = weights.with_name("again.safetensors")
    save_weights(again, model.to(memory_format=torch.channels_last), INFO)
    kernel = load_weights(again)[0].head.outputs[0].weight
    assert isinstance(kernel, torch.Tensor)
    assert kernel.is_contiguous()
    assert torch.equal(kernel, load_weights(weights)[0].head.outputs[0].weight)


def test_others_may_read_it(weights: Path) -> None:
    (weights.parent / "plain").touch()
    assert weights.stat().st_mode == (weights.parent / "plain").stat().st_mode


def test_a_folder_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        save_tensors(tmp_path / "file" / "w.safetensors", {"a": torch.zeros(1)}, {})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a whole safetensors file"),
        (b"PK\x03\x04 a pickled checkpoint", "not a whole safetensors file"),
        (None, "can't be read"),
    ],
)
def test_unreadable(content: bytes | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=text) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0.001, 0.5, 0.999])
def test_truncated(keep: float, weights: Path) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_weights(weights)


def test_foreign(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"expected a weights file of triscale .* not stated"):
        load_weights(path)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("classes", None, "the header is damaged"),
        ("classes", "[", "the header is damaged"),
        ("classes", "5", "classes: expected a list of class names, found 5"),
        ("classes", '["a", ""]', "expected class names to be texts, found ''"),
        ("classes", "[1, 2]", "expected class names to be texts, found 1"),
        ("classes", '["a", "a"]', "expected each class name once, found 'a' twice"),
        ("classes", r'["a", "\ud800"]', "expected class names to be texts"),
        ("classes", r'["a", "\u001b[2J"]', "expected class names to be texts"),
        ("classes", json.dumps([str(i) for i in range(100_000)]), "tensors do not fit the network"),
        ("classes", "[" * 100_000, "nested too deeply"),
        ("recipe", "[]", "the header is damaged"),
        ("recipe", '{"decode": 5}', "the header is damaged"),
        ("model", "[]", "the header is damaged"),
        ("model", '{"backbone": "mobilenet999"}', "unknown network 'mobilenet999'"),
        ("model", '{"backbone": "mobilenet0.1", "anchors": [[[1e999, 1]]]}', "sides above 0"),
        ("model", f'{{"anchors": [[[{"9" * 400}, 1]]]}}', "expected a number of at most 64 bits"),
        ("size", "0", "expected a size from 32 to 8192 pixels, found 0"),
        ("size", "96.5", "expected a size from 32 to 8192 pixels, found 96.5"),
        ("size", "100000", "expected a size from 32 to 8192 pixels, found 100000"),
        ("size", "true", "expected a size from 32 to 8192 pixels, found True"),
        ("model", '{"spine": 1}', "unknown key 'spine'"),
        ("model", '{"backbone": "resnet"}', "unknown network 'resnet'"),
        ("size", '"wide"', "expected a size from 32 to 8192 pixels, found 'wide'"),
        ("input", '{"fit": "crop"}', "input.fit: expected one of"),
    ],
)
def test_wrong_header(key: str, text: str | None, message: str, weights: Path) -> None:
    with safe_open(weights, framework="pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    if text is None:
        del header[key]
    else:
        header[key] = text
    save_tensors(weights, tensors, header, seal=True)
    with pytest.raises(UserError, match=message):
        load_weights(weights)


def test_tensors_that_do_not_fit(model: YOLOv3) -> None:
    tensors = dict(model.state_dict())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    less = {name: t for name, t in tensors.items() if name != "head.outputs.0.bias"}
    for wrong in (
        {},
        less,
        {name: t for name, t in tensors.items() if not name.endswith("running_var")},
        tensors | {"extra": torch.zeros(1)},
        tensors | {"head.outputs.0.bias": torch.zeros(3)},
    ):
        with pytest.raises(UserError, match=r"^there: \d+ tensors do not fit the network"):
            load_state(model, wrong, source="there")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_the_counters_of_batches_may_be_missing(model: YOLOv3) -> None:
    """Other programs' files don't have them."""
    tensors = {k: t for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_state(model, tensors, source="there")


def test_values_that_are_not_finite(model: YOLOv3, weights: Path) -> None:
    tensors = {**model.state_dict(), "head.outputs.0.bias": torch.full((21,), torch.nan)}
    with safe_open(weights, framework="pt") as file:
        save_tensors(weights, tensors, file.metadata(), seal=True)
    with pytest.raises(UserError, match=r"head\.outputs\.0\.bias has values that are not finite"):
        load_weights(weights)


def test_other_numbers_than_floats(model: YOLOv3, weights: Path) -> None:
    """Halves become float32; whole numbers are no weights."""
    state = {k: t.half() if t.is_floating_point() else t for k, t in model.state_dict().items()}
    with safe_open(weights, framework="pt") as file:
        header = file.metadata()
    save_tensors(weights, state, header, seal=True)
    assert {p.dtype for p in load_weights(weights)[0].parameters()} == {torch.float32}
    save_tensors(
        weights,
        state | {"head.outputs.0.bias": torch.ones(21, dtype=torch.int32)},
        header,
        seal=True,
    )
    with pytest.raises(UserError, match=r"head\.outputs\.0\.bias: expected floating point, found"):
        load_weights(weights)


def test_variances_below_zero(model: YOLOv3, weights: Path) -> None:
    name = "backbone.stem.norm.running_var"
    with safe_open(weights, framework="pt") as file:
        negative = {**model.state_dict(), name: -model.state_dict()[name]}
        save_tensors(weights, negative, file.metadata(), seal=True)
    with pytest.raises(UserError, match=rf"{name}: expected at least 0, found -1$"):
        load_weights(weights)


def test_loading_draws_nothing_and_shares_no_memory(weights: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = load_weights(weights)[0], load_weights(weights)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.is_meta for p in first.parameters())
    assert all(p.requires_grad for p in first.parameters())
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).any()


@pytest.mark.parametrize("name", ["a.params", "a.safetensors"])
def test_what_was_loaded_can_be_saved(name: str, model: YOLOv3, tmp_path: Path) -> None:
    """Also if the counters, which GluonCV's files don't have, were made up."""
    info = INFO._replace(input=InputConfig())
    writer_of(tmp_path / name)(tmp_path / name, Weights(model.state_dict(), info))
    loaded, _ = load_weights(tmp_path / name)
    save_weights(tmp_path / "b.safetensors", loaded, info)
    again = load_weights(tmp_path / "b.safetensors")[0].state_dict()
    assert all(torch.equal(again[k], t) for k, t in loaded.state_dict().items())
    assert again.keys() == model.state_dict().keys()


@pytest.mark.parametrize("place", [0.3, 0.999])
def test_a_flipped_bit_is_noticed(place: float, weights: Path) -> None:
    """Half a per mille of a weight is as good a number as the right one."""
    assert is_whole(weights)
    content = bytearray(weights.read_bytes())
    content[int(place * len(content))] ^= 1
    weights.write_bytes(content)
    assert not is_whole(weights)
    with pytest.raises(UserError, match=r"damaged \(the SHA-256 of its tensors isn't"):
        read_native(weights)


def test_what_is_no_whole_file(model: YOLOv3, weights: Path) -> None:
    assert not is_whole(weights.with_name("none"))
    cut = weights.with_name("cut.safetensors")
    cut.write_bytes(weights.read_bytes()[:-1])
    assert not is_whole(cut)
    plain = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(plain, cut)  # another program's: it states no sum
    assert not is_whole(cut)
