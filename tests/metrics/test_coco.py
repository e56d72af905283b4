"""COCO's numbers against pycocotools and against what the reference wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from triscale.metrics.coco import coco_ap
from triscale.metrics.voc import PackedDetections, PackedTruth

KEYS = [
    *("AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge"),
    *("AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge"),
]


def random_data(seed: int, num_images: int) -> tuple[PackedDetections, PackedTruth]:
    """Objects of all sizes, a tenth of them crowds, and detections around them; 4 classes."""
    rng = np.random.default_rng(seed)
    count = num_images * 6
    corner = rng.uniform(0, 300, (count, 2))
    side = np.exp(rng.uniform(np.log(6), np.log(300), (count, 2)))
    boxes = np.concatenate([corner, corner + side], 1)
    truth = PackedTruth(
        images=rng.integers(0, num_images, count) * 3,
        boxes=boxes,
        labels=rng.integers(0, 3, count),
        difficult=np.zeros(count, np.bool_),
        crowd=rng.random(count) < 0.1,
        areas=side.prod(1) * rng.uniform(0.4, 1, count),  # of a mask: smaller than the box
    )
    source = rng.integers(0, max(count, 1), count * 5)
    noise = rng.normal(0, 0.12, (len(source), 4)) * np.tile(side, 2)[source]
    detections = PackedDetections(
        images=truth.images[source],
        boxes=boxes[source] + noise,
        scores=rng.integers(0, 200, len(source)) / 200,  # ties
        labels=np.where(rng.random(len(source)) < 0.1, 3, truth.labels[source]),
    )
    # A picture without objects, and one with more detections than count.
    extra = np.repeat([1, 0], [2, 150]) if num_images else np.zeros(0, int)
    return PackedDetections(
        np.concatenate([detections.images, extra]),
        np.concatenate([detections.boxes, np.tile([5.0, 5, 60, 60], (len(extra), 1))]),
        np.concatenate([detections.scores, rng.random(len(extra))]),
        np.concatenate([detections.labels, np.zeros(len(extra), int)]),
    ), truth


def with_pycocotools(
    truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[list[float], list[float]]:
    """The 12 numbers and the AP of each category."""
    ours = COCO()
    ours.dataset = truth
    ours.createIndex()
    evaluation = COCOeval(ours, ours.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    per_class = []
    for c in range(len(truth["categories"])):
        precision = evaluation.eval["precision"][:, :, c, 0, 2]
        per_class.append(precision.mean() if (precision > -1).all() else math.nan)
    return [math.nan if x == -1 else x for x in evaluation.stats], per_class


@pytest.mark.parametrize(("seed", "num_images"), [(0, 1), (1, 12), (2, 60), (3, 60)])
def test_equal_to_pycocotools(
    seed: int, num_images: int, capfd: pytest.CaptureFixture[str]
) -> None:
    detections, truth = random_data(seed, num_images)

    def xywh(boxes: Any) -> list[list[float]]:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()

    dataset = {
        "images": [{"id": i} for i in range(num_images * 3)],
        "categories": [{"id": c + 10, "name": f"class {c}"} for c in range(5)],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": label + 10, "bbox": box}
            | {"area": area, "iscrowd": int(crowd)}
            for i, (image, label, box, area, crowd) in enumerate(
                zip(
                    truth.images.tolist(),
                    truth.labels.tolist(),
                    xywh(truth.boxes),
                    truth.areas.tolist(),
                    truth.crowd.tolist(),
                    strict=True,
                )
            )
        ],
    }
    results = [
        {"image_id": image, "category_id": label + 10, "bbox": box, "score": score}
        for image, label, box, score in zip(
            detections.images.tolist(),
            detections.labels.tolist(),
            xywh(detections.boxes),
            detections.scores.tolist(),
            strict=True,
        )
    ]
    expected, expected_classes = with_pycocotools(dataset, results)
    capfd.readouterr()
    result = coco_ap(detections, truth, num_classes=5)
    assert capfd.readouterr() == ("", "")
    assert list(result.summary) == KEYS
    np.testing.assert_allclose(list(result.summary.values()), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.per_class, expected_classes, rtol=0, atol=1e-6)
    assert 0.02 < result.summary["AP"] < 0.9  # the data are not trivial


@pytest.mark.parametrize(
    ("num_truth", "num_detections", "expected"),
    [(0, 0, math.nan), (0, 1, math.nan), (1, 0, 0.0), (1, 1, 1.0)],
)
def test_small_cases(num_truth: int, num_detections: int, expected: float) -> None:
    box = np.array([[10.0, 10.0, 60.0, 60.0]])
    one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)
    truth = PackedTruth(one, box, zero, zero > 0, zero > 0, np.array([2500.0]))
    detections = PackedDetections(one, box, np.array([0.001]), zero)
    result = coco_ap(
        PackedDetections(*(field[:num_detections] for field in detections)),
        PackedTruth(*(field[:num_truth] for field in truth)),
        num_classes=1,
    )
    for key in ("AP", "AP50", "AR1", "APmedium"):
        assert result.summary[key] == pytest.approx(expected, nan_ok=True)
    assert math.isnan(result.summary["APlarge"])
    assert result.per_class[0] == pytest.approx(expected, nan_ok=True)


@pytest.mark.golden
def test_equal_to_the_reference(golden: Path) -> None:
    dataset = json.loads((golden / "coco_annotations.json").read_text())
    arrays = np.load(golden / "coco_metric_inputs.npz")
    published = json.loads((golden / "coco_expected.json").read_text())
    label_of = {int(k): v for k, v in published["json_id_to_contiguous"].items()}

    annotations = dataset["annotations"]
    corners = np.array([a["bbox"] for a in annotations])
    corners[:, 2:] += corners[:, :2] - 1  # inclusive, as the reference's detections are taken
    truth = PackedTruth(
        images=np.array([a["image_id"] for a in annotations]),
        boxes=corners,
        labels=np.array([label_of[a["category_id"]] for a in annotations]),
        difficult=np.zeros(len(annotations), np.bool_),
        crowd=np.array([a["iscrowd"] > 0 for a in annotations]),
        areas=np.array([a["area"] for a in annotations]),
    )
    size_of = {image["id"]: (image["width"], image["height"]) for image in dataset["images"]}
    images = arrays["image_ids_in_order"]
    scale = np.array([[w / 416, h / 416] * 2 for w, h in (size_of[i] for i in images.tolist())])
    boxes = arrays["pred_bboxes_416"] * scale[:, None]
    scores, labels = arrays["pred_scores"][..., 0], arrays["pred_labels"][..., 0].astype(int)
    used = (labels >= 0) & (scores >= 0.05)  # gluoncv: it leaves out the others
    detections = PackedDetections(
        np.broadcast_to(images[:, None], used.shape)[used], boxes[used], scores[used], labels[used]
    )
    result = coco_ap(detections, truth, num_classes=80, inclusive=True)
    actual = list(result.summary.values())
    np.testing.assert_allclose(actual, published["stats12"], rtol=0, atol=1e-6)
