"""The detector as a function of pictures; where pictures and weights are found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triscale.data.pictures import read_picture
from triscale.errors import UserError
from triscale.model.folded import FoldedCell
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import InputConfig
from triscale.predict import Detector, find_weights, read_pixels
from triscale.weights.contents import WeightsInfo
from triscale.weights.formats import load_weights
from triscale.weights.native import save_weights
from triscale.weights.zoo import ZOO

LOGIT = 4.0


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of size 96 whose kernels are 0: its last biases are its predictions everywhere."""
    config = ModelConfig(
        backbone="mobilenet0.1",
        anchors=(((48.0, 24.0),), ((10.0, 10.0),), ((10.0, 10.0),)),
    )
    model = build_model(config, 2, generator=torch.Generator())
    with torch.no_grad():
        for output in model.head.outputs:
            output.weight.zero_()
            output.bias.copy_(torch.tensor([0, 0, 0, 0, -20.0, 0, 0]))  # x y w h object a b
        model.head.outputs[0].bias.copy_(torch.tensor([0, 0, 0, 0, LOGIT, -20.0, LOGIT]))
    path = tmp_path_factory.mktemp("weights") / "constant.safetensors"
    save_weights(path, model, WeightsInfo(("a", "b"), config, 96, InputConfig(), {}))
    return path


def expected_boxes(height: int, width: int) -> list[tuple[float, ...]]:
    """By hand: 3 x 3 cells of 32 px, a 48 x 24 box around each centre, clipped, and rescaled."""
    boxes: list[tuple[float, ...]] = []
    for y in (16, 48, 80):
        for x in (16, 48, 80):
            box = (max(x - 24, 0), y - 12, min(x + 24, 96), y + 12)
            scale = (width / 96, height / 96) * 2
            boxes.append(tuple(side * s for side, s in zip(box, scale, strict=True)))
    return boxes


@pytest.mark.parametrize("size", [(96, 96), (48, 192), (200, 100)])
def test_boxes_in_original_pixels(size: tuple[int, int], weights: Path) -> None:
    found = Detector(weights, device="cpu")(np.zeros((*size, 3), np.uint8))
    by_place = sorted(found.boxes.tolist(), key=lambda box: (round(box[1]), round(box[0])))
    np.testing.assert_allclose(by_place, expected_boxes(*size), atol=1e-3)
    probability = 1 / (1 + np.exp(-LOGIT))
    np.testing.assert_allclose(found.scores, probability**2, rtol=1e-5)
    assert set(found.labels.tolist()) == {1}


def test_a_file_and_its_array_are_the_same(trained: Path, devkit: Path) -> None:
    picture = devkit / "VOC2007" / "JPEGImages" / "000001.jpg"
    detector = Detector(trained, device="cpu")
    assert detector.path == trained / "best.safetensors"
    from_file, from_text = detector(picture), detector(str(picture))
    from_array, from_batch = detector(read_picture(picture)), detector.batch([picture, picture])[1]
    assert len(from_file.scores)
    assert (np.diff(from_file.scores) <= 0).all(), "best first"
    for other in (from_text, from_array):
        assert from_file.to_dicts() == other.to_dicts()
    np.testing.assert_allclose(from_batch.scores, from_file.scores, rtol=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        None,
    ],
)
def test_a_wrong_array_is_refused(image: np.ndarray, weights: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected an RGB image as uint8 of shape \(H, W, 3\), got"
    ):
        Detector(weights, device="cpu")(image)


def test_a_missing_picture_is_named(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / 'none.jpg'}: can't be read"):
        Detector(weights, device="cpu")(tmp_path / "none.jpg")


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_list_gives_a_list(number: int, weights: Path) -> None:
    detector = Detector(weights, device="cpu")
    sizes = [(96, 96), (48, 192), (200, 100)][:number]
    pictures = [np.zeros((*size, 3), np.uint8) for size in sizes]
    for batch_size in (1, 2, 4):
        found = detector(pictures, batch_size=batch_size)
        assert [len(one) for one in found] == [9] * number
        for one, (height, width) in zip(found, sizes, strict=True):
            assert one.boxes.max(0)[2:].round().tolist() == [width, round(height * 92 / 96)]
            assert set(one.names) == {"b"}
    assert len(detector(tuple(pictures))) == number


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "LA", "1"])
def test_pil_images(mode: str, weights: Path) -> None:
    detector = Detector(weights, device="cpu")
    image = Image.new("RGB", (192, 48), (250, 120, 10)).convert(mode)
    found = detector(image)
    assert len(found) == 9
    assert found.draw().shape == (48, 192, 3)
    assert np.array_equal(read_pixels(image), np.asarray(image.convert("RGB")))


def test_pil_images_are_turned(tmp_path: Path) -> None:
    """As EXIF says, and as the file is when it is read from disk."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = read_pixels(Image.open(tmp_path / "turned.png"))
    assert turned.shape == (32, 16, 3)
    assert np.array_equal(turned, read_pixels(tmp_path / "turned.png"))


def test_pil_images_of_16_bits_are_refused() -> None:
    with pytest.raises(UserError, match="8 bits per channel, got mode I;16"):
        read_pixels(Image.new("I;16", (4, 4)))


def test_the_result_knows_its_picture(weights: Path, tmp_path: Path) -> None:
    """A file is read again when it is asked for; arrays are kept."""
    pixels = np.full((96, 96, 3), 50, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    detector = Detector(weights, device="cpu")
    from_file, from_array = detector([str(tmp_path / "p.png"), pixels])
    assert from_file.classes == detector.classes
    assert np.array_equal(from_file.draw(), from_array.draw())
    assert from_file._repr_png_() == from_array._repr_png_()
    (tmp_path / "p.png").unlink()
    with pytest.raises(UserError, match="can't be read"):
        from_file.draw()


def test_find_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weights file or run folder"):
        find_weights(tmp_path / "none")
    with pytest.raises(UserError, match="found neither"):
        find_weights(tmp_path)
    for name in ("epoch_0000_0.1000", "epoch_0010"):
        (tmp_path / f"{name}.safetensors").touch()
    assert find_weights(tmp_path).name == "epoch_0010.safetensors"
    (tmp_path / "best.safetensors").touch()
    assert find_weights(tmp_path).name == "best.safetensors"
    assert find_weights(tmp_path / "epoch_0010.safetensors").name == "epoch_0010.safetensors"


def test_device_is_checked(weights: Path) -> None:
    for name in ("gpu", "meta", "cuda:x"):
        with pytest.raises(UserError, match=f"expected cpu, cuda, cuda:N or auto, got '{name}'"):
            Detector(weights, device=name)


def test_precision(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision or not is said, or measured; constant predictions are the same in both."""
    with pytest.raises(UserError, match="precision: expected fp32, bf16 or auto, got 'int8'"):
        Detector(weights, device="cpu", precision="int8")  # type: ignore[arg-type]
    picture = np.full((96, 96, 3), 99, np.uint8)
    full = Detector(weights, device="cpu")
    half = Detector(weights, device="cpu", precision="bf16")
    assert (full.engine.precision, half.engine.precision) == ("fp32", "bf16")
    types = [
        {c.dtype for c in d.engine.model.modules() if isinstance(c, FoldedCell)}
        for d in (full, half)
    ]
    assert types == [{torch.float32}, {torch.float32, torch.bfloat16}]
    assert half(picture).to_dicts() == full(picture).to_dicts()
    monkeypatch.setattr("triscale.engines.pytorch.faster_precision", lambda device: "bf16")
    assert Detector(weights, device="cpu", precision="auto").engine.precision == "bf16"


def test_folding_changes_no_detection(trained: Path, devkit: Path) -> None:
    """The Detector against the network as it was trained."""
    picture = devkit / "VOC2007" / "JPEGImages" / "000001.jpg"
    detector = Detector(trained, device="cpu")
    found = detector(picture)
    assert any(isinstance(module, FoldedCell) for module in detector.engine.model.modules())
    detector.engine.model = load_weights(detector.path)[0]
    plain = detector(picture)
    assert len(plain.scores) > 10
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-6)


def test_downloaded_names(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRISCALE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"get it with: triscale download darknet53$"):
        find_weights(Path("darknet53"))
    cached = tmp_path / "cache" / f"darknet53-{ZOO['darknet53'][:8]}.safetensors"
    cached.parent.mkdir()
    cached.write_bytes(weights.read_bytes())
    assert find_weights(Path("darknet53")) == cached
    assert Detector("darknet53", device="cpu").classes == ("a", "b")
    Path("darknet53").mkdir()  # what lies here goes first
    with pytest.raises(UserError, match="found neither"):
        find_weights(Path("darknet53"))


def test_a_letterbox(weights: Path, tmp_path: Path) -> None:
    """The network of `weights` in a picture twice as high as wide: half of its cells are bars."""
    model, info = load_weights(weights)
    path = tmp_path / "letterbox.safetensors"
    save_weights(path, model, info._replace(input=InputConfig(fit="letterbox")))
    found = Detector(path, device="cpu")(np.zeros((192, 96, 3), np.uint8))
    # 48 x 96 pixels of the input from x = 24 on, at half the picture's size
    expected = sorted(
        (max(2 * (x - 24 - 24), 0), 2 * (y - 12), min(2 * (x + 24 - 24), 96), 2 * (y + 12))
        for y in (16, 48, 80)
        for x in (16, 48, 80)
    )
    actual = sorted(tuple(box) for box in found.boxes.round().tolist())
    assert actual == expected


def test_darknets_detections(shared: Path) -> None:
    """In five pictures the same objects as Darknet, none missing and none more.

    Darknet's input are floats, ours bytes, and where its bars are of odd width it places the
    picture half a pixel from where it looks for it.
    """
    detector = Detector(shared / "weights" / "yolov3-tiny.weights", device="cpu")
    names = (shared / "data" / "pictures" / "coco.names").read_text().split("\n")
    oracle = json.loads((shared / "oracles" / "darknet-tiny" / "detections.json").read_text())
    assert len(oracle["images"]) == 5
    for name, expected in oracle["images"].items():
        found = detector(shared / "data" / "pictures" / name)
        ours = [
            (int(label), box, score)
            for label, box, score in zip(found.labels, found.boxes, found.scores, strict=True)
            if score > oracle["thresh"]
        ]
        width, height = expected["size"]
        for theirs in expected["detections"]:
            half = np.array([theirs["w"], theirs["h"]]) / 2
            centre = np.array([theirs["cx"], theirs["cy"]])
            box = np.concatenate([centre - half, centre + half]).clip(0, [width, height] * 2)
            label = names.index(theirs["cls"])
            matches = [o for o in ours if o[0] == label and np.abs(o[1] - box).max() < 1.5]
            assert matches, (name, theirs)
            nearest = min(matches, key=lambda o: abs(o[2] - theirs["score"]))
            assert abs(nearest[2] - theirs["score"]) < 0.015
            ours = [o for o in ours if o is not nearest]
        assert not ours, name
