"""What the weights formats share: class names, finite numbers, and folding the input's scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triscale.data.classes import COCO_CLASSES, VOC_CLASSES
from triscale.errors import UserError
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import NORMALISATIONS, InputConfig
from triscale.weights.contents import (
    Weights,
    WeightsInfo,
    class_names,
    fold_normalisation,
    read_names,
    require_finite,
    with_normalisation,
)

PATH = Path("some.weights")


@pytest.mark.parametrize(
    ("number", "given", "expected"),
    [
        (0, None, ()),
        (2, None, ("class0", "class1")),
        (20, None, VOC_CLASSES),
        (80, None, COCO_CLASSES),
        (2, ["cat", "dog"], ("cat", "dog")),
        (20, [str(i) for i in range(20)], tuple(str(i) for i in range(20))),
    ],
)
def test_class_names(number: int, given: list[str] | None, expected: tuple[str, ...]) -> None:
    assert class_names(number, given, path=PATH) == expected


def test_the_wrong_number_of_names() -> None:
    with pytest.raises(UserError, match=r"^some.weights: has 3 classes, 2 names were given$"):
        class_names(3, ["a", "b"], path=PATH)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"cat\n", ("cat",)),
        ("côté \r\ntraffic light\r\n\n".encode(), ("côté", "traffic light")),
    ],
)
def test_read_names(content: bytes, expected: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.names").write_bytes(content)
    assert read_names(tmp_path / "a.names") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        (b"", "expected a class name in UTF-8 on each line, found 1 lines, 1 of them empty"),
        (b"\xff", "expected a class name in UTF-8 on each line"),
        (b"a\n\nb\n", "found 3 lines, 1 of them empty"),
        (b"a\n" * 200_000, "expected a text of at most 262144 bytes"),
    ],
)
def test_wrong_names(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.names").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_names(tmp_path / "a.names")
    assert str(tmp_path / "a.names") in str(caught.value)


def test_coco_classes_are_the_official_ones(shared: Path) -> None:
    """Darknet's list has the same order, and six names of VOC."""
    theirs = (shared / "data" / "pictures" / "coco.names").read_text().split("\n")[:80]
    other = [ours for ours, name in zip(COCO_CLASSES, theirs, strict=True) if ours != name]
    assert other == ["motorcycle", "airplane", "couch", "potted plant", "dining table", "tv"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_must_be_finite(value: float) -> None:
    good = {"a": torch.zeros(0), "b": torch.ones(2, 2), "n": torch.tensor(3)}
    require_finite(good, path=PATH)
    with pytest.raises(UserError, match=r"^some.weights: b has values"):
        require_finite(good | {"b": torch.tensor([1.0, value])}, path=PATH)


@pytest.mark.parametrize("backbone", ["darknet53", "mobilenet0.25", "tiny"])
def test_a_folded_network_computes_the_same(backbone: str) -> None:
    """Behind the first cell, but for the pixels that see the padding."""
    config = ModelConfig(backbone=backbone, init="kaiming")
    model = build_model(config, 1, generator=torch.Generator().manual_seed(0)).eval()
    cell = next(m for m in model.backbone.modules() if type(m).__name__ == "ConvCell")
    torch.nn.init.normal_(cell.norm.running_mean, generator=torch.Generator().manual_seed(1))
    old, new = NORMALISATIONS["unit"], NORMALISATIONS["imagenet"]
    pixels = torch.rand(2, 3, 33, 40, generator=torch.Generator().manual_seed(2)).double()
    outputs = []
    with torch.inference_mode():
        for mean, std in (old, new):
            scaled = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
            outputs.append(cell(scaled.float())[..., 1:-1, 1:-1])
            model.load_state_dict(fold_normalisation(model.state_dict(), old, new))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    assert outputs[0].abs().mean() > 0.1


def test_there_and_back() -> None:
    config = ModelConfig(backbone="tiny", init="kaiming")
    model = build_model(config, 1, generator=torch.Generator().manual_seed(0))
    info = WeightsInfo(("a",), config, 416, InputConfig("unit", "letterbox"), {})
    weights = Weights(model.state_dict(), info)
    assert with_normalisation(weights, "unit") is weights
    there = with_normalisation(weights, "imagenet")
    assert there.info == info._replace(input=InputConfig("imagenet", "letterbox"))
    back = with_normalisation(there, "unit")
    assert back.info == info
    changed = {k for k, t in there.tensors.items() if not torch.equal(t, weights.tensors[k])}
    first = "backbone.stages.0.0"
    assert changed == {f"{first}.conv.weight", f"{first}.norm.running_mean"}
    for name in changed:
        torch.testing.assert_close(back.tensors[name], weights.tensors[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ((), "the first layers of tiny, 4 numbers, no classes"),
        (
            ("a", "b"),
            "tiny, 4 numbers, 2 classes (a, b); input 416x416, letterbox, normalised as unit",
        ),
        (
            tuple("abcdef"),
            "tiny, 4 numbers, 6 classes (a, b, c, d, e, ...); input 416x416, letterbox, "
            "normalised as unit",
        ),
    ],
)
def test_describe(classes: tuple[str, ...], text: str) -> None:
    info = WeightsInfo(
        classes, ModelConfig(backbone="tiny"), 416, InputConfig("unit", "letterbox"), {}
    )
    tensors = {"a": torch.zeros(4), "a.num_batches_tracked": torch.tensor(1)}
    assert Weights(tensors, info).describe() == text
    guessed = Weights(tensors, info._replace(named=False)).describe()
    assert guessed == text.replace("); input", "), names assumed; input")
