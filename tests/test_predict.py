"""The detector as a function of pictures; where pictures and weights are found."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from triscale.data.pictures import read_picture
from triscale.errors import UserError
from triscale.model.yolo import ModelConfig, build_model
from triscale.predict import Detector, find_pictures, find_weights
from triscale.weights.native import WeightsInfo, save_weights

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
    save_weights(path, model, WeightsInfo(("a", "b"), config, 96, {}))
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
        assert all(np.array_equal(a, b) for a, b in zip(from_file, other, strict=True))
    np.testing.assert_allclose(from_batch.scores, from_file.scores, rtol=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
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


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "deep/c.bmp", "notes.txt"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _, data = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))
        path.write_bytes(data.tobytes())
    return tmp_path / "album"


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ([], []),
        (["b.jpg"], ["b.jpg"]),
        ([""], ["a.PNG", "b.jpg", "c.bmp"]),
        (["deep"], ["c.bmp"]),
        (["*.jpg"], ["b.jpg"]),
        (["**/*.bmp", "a.PNG"], ["c.bmp", "a.PNG"]),
        (["?.*"], ["a.PNG", "b.jpg"]),
        (["notes.txt"], ["notes.txt"]),  # named outright: reading it says what is wrong
    ],
)
def test_find_pictures(sources: list[str], names: list[str], album: Path) -> None:
    assert [p.name for p in find_pictures([str(album / s) for s in sources])] == names


@pytest.mark.parametrize("source", ["none.jpg", "*.gif", "empty"])
def test_no_pictures(source: str, album: Path) -> None:
    (album / "empty").mkdir()
    with pytest.raises(UserError, match="no picture found"):
        find_pictures([str(album / "b.jpg"), str(album / source)])


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
