"""Validation: which pictures, which pixels, which metric."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from triscale.data.index import Index
from triscale.data.open import Data
from triscale.detections import Detections
from triscale.errors import UserError
from triscale.evaluation import EvalConfig, Evaluation, choose_metric, evaluate, score
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import InputConfig
from triscale.predict import Detector


@pytest.fixture
def index(data: Data) -> Index:
    assert data.val is not None
    return data.val


def perfect(index: Index, *, shift: float = 0.0) -> list[Detections]:
    """The true boxes as detections, each moved `shift` of its width to the right."""
    found: list[Detections] = []
    for image in range(len(index)):
        rows = index.objects(image)
        boxes = index.boxes[rows].copy()
        boxes[:, [0, 2]] += shift * (boxes[:, 2:3] - boxes[:, :1])
        scores = np.linspace(0.9, 0.5, len(boxes)).astype(np.float32)
        found.append(Detections(boxes, scores, index.labels[rows].astype(np.int64)))
    return found


def nothing(index: Index) -> list[Detections]:
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    return [empty] * len(index)


@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
def test_nothing_found_and_all_found(metric: str, index: Index) -> None:
    assert metric in ("voc07", "voc", "coco")
    none = score(nothing(index), index, size=64, metric=metric, config=EvalConfig())
    every = score(perfect(index), index, size=64, metric=metric, config=EvalConfig())
    assert none.mean == 0
    assert every.mean == pytest.approx(1)
    counts = np.bincount(index.labels[~index.difficult], minlength=len(index.classes))
    for name, count in zip(index.classes, counts, strict=True):
        if count == 0:
            assert np.isnan(every.per_class[name]), "a class without objects has no AP"
        else:
            assert every.per_class[name] == pytest.approx(1)


def test_iou_threshold(index: Index) -> None:
    """Moved by a quarter of its width a box overlaps itself by 3/5."""
    moved = perfect(index, shift=0.25)

    def mean(iou: float) -> float:
        return score(moved, index, size=64, metric="voc", config=EvalConfig(iou=iou)).mean

    assert mean(0.59) == pytest.approx(1)
    assert mean(0.61) == 0


def test_network_resolution_is_the_reference_way(index: Index) -> None:
    """IoU after the resize and with a pixel more on each box: at a tiny size that decides.

    A box of 20 x 20 px and its copy moved by 8 px overlap by 12/28 = 0.43; shrunk to a tenth they
    are 2 x 2 and moved by 0.8, and with the pixel more (3 - 0.8) / (3 + 0.8) = 0.58.
    """
    boxes = np.array([[40, 40, 60, 60]], np.float32)
    one = replace(
        index.select(np.array([0])),
        sizes=np.array([[100, 100]], np.int32),
        offsets=np.array([0, 1]),
        boxes=boxes,
        labels=np.array([2], np.int32),
        difficult=np.array([False]),
        crowd=np.array([False]),
        areas=np.array([400], np.float32),
    )
    found = [Detections(boxes + np.float32([8, 0, 8, 0]), np.float32([0.9]), np.array([2]))]
    for config, expected in ((EvalConfig(), 0.0), (EvalConfig(network_resolution=True), 1.0)):
        result = score(found, one, size=10, metric="voc07", config=config)
        assert result.mean == pytest.approx(expected)


def test_json_has_no_nan(index: Index) -> None:
    result = Evaluation("voc07", float("nan"), {"a": float("nan"), "b": 0.5}, {}, 3, [])
    assert result.to_json() == {
        "metric": "voc07",
        "mAP": None,
        "per_class": {"a": None, "b": 0.5},
        "images": 3,
    }
    assert result.metrics() == {"mAP": None, "AP/a": None, "AP/b": 0.5}


def test_coco_numbers_by_their_usual_names(index: Index) -> None:
    result = score(perfect(index), index, size=64, metric="coco", config=EvalConfig())
    assert list(result.numbers) == [
        *("AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge"),
        *("AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge"),
    ]
    assert result.mean == result.numbers["AP"]
    assert result.to_json()["AP50"] == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_every_picture_once_whatever_the_batch(batch_size: int, index: Index, trained: str) -> None:
    """And the detections are those of the Detector, which knows no index."""
    detector = Detector(trained, device="cpu")
    seen: list[int] = []
    detector.engine.model.train()
    result = evaluate(
        detector.engine.model,
        index,
        size=64,
        input_config=detector.engine.info.input,
        decode=detector.engine.decode,
        batch_size=batch_size,
        on_batch=lambda: seen.append(1),
    )
    assert detector.engine.model.training, "the mode is given back"
    assert result.images == len(result.detections) == len(index)
    assert len(seen) == -(-len(index) // batch_size)
    detector.engine.model.eval()
    for found, path in zip(result.detections, index.paths, strict=True):
        alone = detector(path)
        assert len(found.scores) > 0
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-3, atol=1e-6)


def test_the_running_statistics_are_not_touched(index: Index) -> None:
    config = ModelConfig(backbone="mobilenet0.1")
    model = build_model(config, len(index.classes), generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model.train(), index, size=64, input_config=InputConfig())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("wanted", "data_format", "expected"),
    [
        ("auto", "", "voc07"),
        ("auto", "coco", "coco"),
        ("auto", "yolo", "voc07"),
        ("voc", "coco", "voc"),
        ("coco", "voc", "coco"),
    ],
)
def test_choose_metric(wanted: str, data_format: str, expected: str) -> None:
    assert choose_metric(wanted, data_format) == expected


def test_unknown_metric() -> None:
    with pytest.raises(UserError, match="expected voc07, voc or coco, got 'map'"):
        choose_metric("map", "voc")
