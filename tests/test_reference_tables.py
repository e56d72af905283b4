"""A part of the reference's arrays as tables, for those who don't have the folder with all of them.

Every expected number below was put out by the reference (GluonCV 0.10.5.post0 with MXNet 1.9.1) or
cut from what it put out; each table names its array. Where no tolerance is explained it is that of
the printed digits.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.golden_networks import fill, losses_per_image, tiny_golden
from triscale.anchors import YOLO3_ANCHORS, make_grid
from triscale.assign import assign
from triscale.data.augment import Geometry, hue_matrix, move_boxes, saturation_matrix
from triscale.decode import DecodeConfig, detect, nms
from triscale.loss import LossConfig, yolo_loss
from triscale.metrics.voc import PackedDetections, PackedTruth, voc_ap
from triscale.model.yolo import YOLOv3
from triscale.optim import set_lr
from triscale.schedule import ScheduleConfig, learning_rate
from triscale.sgd import SGD
from triscale.types import Predictions, Targets
from triscale.weights.gluoncv_names import gluoncv_names

# --- the small network `tiny`, filled by the recipe of the golden arrays -------------------------

RANGES = {"gamma": (0.5, 1.3), "beta": (-0.2, 0.2), "bias": (-0.5, 0.5)}
RANGES |= {"running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}


def value(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A tensor of the reference's `tiny`: random numbers whose seed is the name."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.split(".")[-1]
    if leaf == "weight":
        numbers = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        numbers *= 0.3 if ".prediction." in name else 1
    else:
        numbers = rng.uniform(*RANGES[leaf], shape)
    if re.fullmatch(r"stages\.\d\.\d\.body\.1\.1\.gamma", name):  # the end of a residual branch
        numbers *= 0.3
    return numbers.astype(np.float32)


def images(seed: int, *shape: int) -> torch.Tensor:
    """Network input in steps of 1/64 from -2 to 2."""
    numbers = np.random.RandomState(seed).randint(-128, 129, shape) / 64
    return torch.from_numpy(numbers.astype(np.float32))


@pytest.fixture
def tiny() -> YOLOv3:
    return fill(tiny_golden(), value)


# net_tiny.npz, case0_pred_stride32, 16, 8: mean, deviation and first values.
MAPS = [
    (-0.05413, 0.353889, [-0.40087, -0.49388, -0.37441, -0.45186, -0.46873, -0.46525, -0.35943]),
    (-0.01517, 0.695034, [-0.16896, -0.49562, -0.28518, -0.72125, -0.50936, -0.68131, -0.39146]),
    (0.144906, 0.976613, [-0.17729, -0.28565, -0.36965, -0.58816, -0.44801, -0.90368, -0.45173]),
]


def test_raw_maps(tiny: YOLOv3) -> None:
    with torch.inference_mode():
        maps = tiny.head(tiny.backbone(images(100, 2, 3, 96, 96)))
    for ours, (mean, deviation, first) in zip(maps, MAPS, strict=True):
        assert ours.mean().item() == pytest.approx(mean, abs=2e-6)
        assert ours.std(correction=0).item() == pytest.approx(deviation, abs=2e-6)
        assert ours.flatten()[:7].tolist() == pytest.approx(first, abs=2e-5)


# net_tiny.npz, case1_nms_t3_k50_p10: label, score, box. The first three.
DETECTIONS = [
    (3, 0.623022, (40.807, 49.259, 88.538, 74.833)),
    (3, 0.611010, (64.854, 52.678, 128.497, 71.616)),
    (3, 0.595565, (5.846, 32.502, 124.017, 59.941)),
]


def test_detections(tiny: YOLOv3) -> None:
    with torch.inference_mode():
        predictions = tiny(images(101, 1, 3, 96, 160))
    config = DecodeConfig(iou_threshold=0.3, top_k=50, keep=3)
    found = detect(predictions, make_grid(tiny.anchors, (96, 160)), config)
    labels, scores, boxes = zip(*DETECTIONS, strict=True)
    assert found.labels[0].tolist() == list(labels)
    assert found.scores[0].tolist() == pytest.approx(scores, abs=2e-6)
    np.testing.assert_allclose(found.boxes[0], boxes, rtol=0, atol=2e-3)


# loss_grad.npz, tiny_gt_xyxyc and tiny_smooth0_mix0_losses_obj_ctr_scl_cls.
OBJECTS = [
    [[4, 4.8, 24, 32, 3], [40, 40, 56, 60, 1], [24, 10.7, 48.6, 46.8, 2]],
    [[8, 12, 36, 40, 4], [2, 2, 12, 16, 0], [48, 8, 63.6, 24, 2]],
]
LOSSES = [[152.37001, 153.80212], [8.011656, 9.247014], [2.305666, 4.285803], [10.498777, 10.76276]]
# grad_summary.json.gz, tiny_smooth0_mix0: sum, norm and first four values.
GRADIENTS = {
    "stages.0.0.0.weight": (132.9803, 119.23841, [2.68249, 13.8905, -0.03914, -1.71718]),
    "yolo_blocks.1.tip.0.weight": (4.50777, 3.42093, [0.06186, -0.0193, 0.07928, -0.14404]),
    "yolo_outputs.2.prediction.weight": (835.424, 119.72, [-0.59234, -0.53933, -0.2823, -0.3434]),
}


def test_training_step(tiny: YOLOv3) -> None:
    losses, ignored = losses_per_image(
        tiny.train(),
        images(186, 2, 3, 64, 64),
        torch.tensor(OBJECTS),
        weights=torch.ones(2, 3),
        config=LossConfig(),
    )
    # Measured 2e-6: a score of batch norms in float32, on our side and theirs.
    np.testing.assert_allclose(losses.detach(), LOSSES, rtol=1e-5)
    assert ignored.sum() == 0
    losses.sum().backward()
    names = {theirs: ours for ours, theirs in gluoncv_names(tiny).items()}
    for name, (total, norm, first) in GRADIENTS.items():
        grad = tiny.get_parameter(names[name]).grad
        assert grad is not None
        # For the same reason; the bound on the sum follows from that on the norm.
        assert grad.norm().item() == pytest.approx(norm, rel=1e-4)
        assert grad.flatten()[:4].tolist() == pytest.approx(first, abs=1e-4 * norm)
        assert grad.sum().item() == pytest.approx(total, abs=1e-4 * norm * grad.numel() ** 0.5)


# --- parts ---------------------------------------------------------------------------------------

# box_nms.npz, ties_in: scores and boxes of class 0 from 0.8 on, whose fate no other box decides.
TIES = [
    (0.8, 10.8, 93.2, 38.1, 101.1), (0.8, 63.5, 49.4, 117.2, 89.2), (1.0, 15.7, 29.3, 25.6, 80.3),
    (1.0, 16.9, 31.1, 63.4, 86.4), (0.8, 18.0, 81.6, 52.7, 113.4), (0.9, -12.1, 63.5, 13.5, 109.3),
    (0.8, 61.1, 39.1, 115.5, 44.8), (0.9, -5.9, 49.4, 6.1, 107.9), (1.0, -3.0, 53.4, 13.0, 62.6),
    (1.0, 46.4, 71.4, 53.8, 92.3),
]  # fmt: skip


@pytest.mark.parametrize(
    ("iou_threshold", "kept"),  # ties_out_t0.3_k400, ties_out_t0.45_k400
    [(0.3, [2, 3, 8, 9, 5, 0, 1, 4, 6]), (0.45, [2, 3, 8, 9, 5, 7, 0, 1, 4, 6])],
)
def test_suppression_with_ties(iou_threshold: float, kept: list[int]) -> None:
    rows = torch.tensor(TIES)
    config = DecodeConfig(iou_threshold=iou_threshold, keep=len(kept))
    found = nms(rows[None, :, 1:], rows[None, :, :1], lengths=(10,), config=config)
    assert torch.equal(found.boxes[0], rows[kept, 1:])


# prefetch_targets.npz, odd160: box and label -> slot, centre, scale, weight.
Target = tuple[tuple[float, ...], int, int, tuple[float, float], tuple[float, float], float]
TARGETS: list[Target] = [
    ((10, 12, 60, 80), 3, 142, (0.1875, 0.875), (-0.21511, 0.41285), 1.86719),
    # None for (100, 100, 140, 150), 7: its prediction goes to the next one.
    ((101, 101, 141, 151), 9, 306, (0.5625, 0.875), (0.28768, -0.19885), 1.92188),
    ((0, 0, 159.5, 159.9), 0, 37, (0.49219, 0.49844), (0.02219, -0.21372), 1.00375),
    ((50, 60, 50.4, 60.2), 11, 813, (0.275, 0.5125), (-2.30259, -2.56495), 2.0),
    ((150, 1, 160, 9), 19, 432, (0.375, 0.625), (0.0, -0.48551), 1.99688),
    ((5, 140, 158, 143), 4, 1427, (0.1875, 0.6875), (1.53393, -2.03688), 1.98207),
    ((80, 80, 112, 112), 2, 1133, (0.0, 0.0), (-0.03077, 0.33024), 1.96),
]


def test_targets() -> None:
    boxes, labels, slots, centres, scales, weights = zip(*TARGETS, strict=True)
    targets = assign(
        torch.tensor([[(100.0, 100.0, 140.0, 150.0), *boxes]]),
        torch.tensor([[7, *labels]]),
        torch.ones(1, 8),
        make_grid(YOLO3_ANCHORS, (160, 160)),
        size=(160, 160),
    )
    assert targets.weight.tolist() == [[0, *[1] * 7]]
    assert targets.slot[0, 1:].tolist() == list(slots)
    assert targets.label[0, 1:].tolist() == list(labels)
    for field, theirs in (("centre", centres), ("scale", scales), ("box_weight", weights)):
        ours = getattr(targets, field)[0, 1:]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=field)


# loss_block.npz, image 0, positions 12 (an object of weight 0.4), 14 (an object), 11 (ignored) and
# 20 (background): the predictions, in the order of `Predictions`, and the gradients of the losses.
LOGITS = (
    [(-0.1639, -2.4373), (-1.1573, 0.1641), (-0.5598, 4.0616), (-1.1968, 0.2461)],
    [(0.5554, 0.8297), (1.0575, -0.9837), (-0.9592, 0.7254), (-0.1242, -0.1525)],
    [1.5387, 3.3873, -1.3234, -0.9875],
    [
        (-0.3561, -1.0643, 0.9349, -1.2342, 1.6603, 0.8178, -3.2455),
        (-2.4188, 1.1414, -3.9577, -0.4068, -0.8216, -2.6259, -2.4416),
        (1.1013, -0.5633, 1.7933, 0.4711, -3.7547, -2.0239, -1.6486),
        (-1.5347, 3.5165, -0.9019, -0.7248, -0.2369, -0.3502, -1.2305),
    ],
)
SLOPES = (
    [(-0.08687, -0.5784), (-0.7715, -0.08956), (0, 0), (0, 0)],
    [(0.7298, 0.7298), (1.36147, -1.36147), (0, 0), (0, 0)],
    [-0.07069, -0.0327, 0, 0.27141],
    [
        (0.16477, 0.10259, 0.28723, 0.09018, -0.06389, 0.27751, 0.015),
        (-0.91825, 0.75794, 0.01875, 0.39969, 0.30543, 0.06749, 0.08005),
        *[(0,) * 7] * 2,
    ],
)


def test_gradients_of_the_loss() -> None:
    """Each prediction's are its own, so a part of the array is as good as the whole."""
    predictions = Predictions(*(torch.tensor([f], requires_grad=True) for f in LOGITS))
    targets = Targets(
        slot=torch.tensor([[0, 1]]),
        centre=torch.tensor([[[0.5782, 0.8729], [0.8058, 0.6067]]]),
        scale=torch.tensor([[[-0.5706, 0.7022], [-1.1982, -0.1257]]]),
        box=torch.zeros(1, 2, 4),
        box_weight=torch.tensor([[1.8245, 1.3615]]),
        label=torch.tensor([[4, 0]]),
        weight=torch.tensor([[0.4, 1.0]]),
    )
    ignore = torch.tensor([[False, False, True, False]])
    grid = make_grid(YOLO3_ANCHORS, (64, 64))  # what the overlap would need
    losses = yolo_loss(predictions, targets, ignore, grid, LossConfig())
    grads = torch.autograd.grad(losses.total, list(predictions))
    for ours, theirs in zip(grads, SLOPES, strict=True):
        # The inputs have four digits here; the largest weight on them is 1.4.
        np.testing.assert_allclose(ours[0], theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("weight_decay", "expected"),  # optim.npz, the last rows of w_after_wdmult1 and w_after_wdmult0
    [
        (5e-4, [0.980687, 0.380175, 0.612867, -1.26682, 0.179676, -0.118331]),
        (0.0, [0.9818, 0.380456, 0.612935, -1.267954, 0.179608, -0.11858]),
    ],
)
def test_way_of_the_optimiser(weight_decay: float, expected: list[float]) -> None:
    rng = np.random.RandomState(3)
    w = torch.nn.Parameter(torch.from_numpy(rng.standard_normal(6)))
    optimizer = SGD([w], lr=1.0, momentum=0.9, weight_decay=weight_decay)
    for lr in (0.1, 0.1, 0.1, 0.01, 0.01, 0.001):
        w.grad = torch.from_numpy(5 * rng.standard_normal(6)) / 4  # a batch of four
        set_lr(optimizer, lr)
        optimizer.step()
    assert w.tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("mode", "expected"),  # lr_schedules.json, head 1, 3 and 5: ten epochs of seven steps
    [
        ("step", [0, 5.384615385e-4, 1e-3, 1e-3, 1e-4, 1e-5, 1e-5]),
        ("poly", [0, 5.384615385e-4, 1e-3, 1e-3, 2.409917355e-4, 5.58677686e-5, 0]),
        ("cosine", [0, 5.384615385e-4, 1e-3, 1e-3, 4.857219746e-4, 1.316294311e-4, 0]),
    ],
)
def test_learning_rates(mode: Any, expected: list[float]) -> None:
    config = ScheduleConfig(mode=mode, warmup_epochs=2, decay=0.1, decay_epochs=(6, 8))
    got = [
        learning_rate(t, base_lr=1e-3, config=config, epochs=10, first_step=lambda e: 7 * e)
        for t in (0, 7, 13, 14, 42, 56, 69)
    ]
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-15)


# What set2 of voc_metric_inputs.npz comes to for class c at IoU 0.5: its detections, best first, up
# to the last correct one; d is a difficult object, which counts for nothing.
OUTCOMES = "0001d0dd01d1101001d100d00110d00d1d00dd00001000d001d0d00000011"


@pytest.mark.parametrize(
    ("use_07", "expected"),  # voc_metric_expected.json, set2|..|0.5|names|difficult
    [(True, 0.2618480437069463), (False, 0.2512649425367303)],
)
def test_average_precision(use_07: bool, expected: float) -> None:
    count, found = len(OUTCOMES), [i for i, c in enumerate(OUTCOMES) if c != "0"]
    missed = range(count, count + 23 - OUTCOMES.count("1"))  # of the 23 objects that count
    boxes = np.tile([0.0, 0.0, 10.0, 10.0], (100, 1))  # one in each picture
    images = np.array([*found, *missed])
    zeros = np.zeros(len(images), int)
    difficult = np.array([i < count and OUTCOMES[i] == "d" for i in images])
    truth = PackedTruth(images, boxes[images], zeros, difficult, crowd=zeros > 0, areas=zeros * 1.0)
    scores, labels = np.linspace(1, 0.1, count), np.zeros(count, int)
    detections = PackedDetections(np.arange(count), boxes[:count], scores, labels)
    result = voc_ap(detections, truth, num_classes=1, use_07=use_07)
    assert result.mean == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("crop", "flip", "expected"),  # bbox_transforms.npz: crop0, crop1, crop3, crop4, flip_x
    [
        ((5, 6, 40, 30), False, [(5, 6, 40, 30), (0, 0, 40, 30)]),
        ((20, 10, 60, 50), False, [(0, 2, 40, 40), (10, 0, 50, 48), (0, 0, 60, 50)]),
        ((0, 0, 9, 10), False, [(2, 2, 8, 9)]),
        ((70, 50, 10, 10), False, []),
        ((0, 0, 80, 60), True, [(20, 12, 70, 50), (10, 5, 50, 58), (72, 2, 78, 9), (0, 0, 80, 60)]),
    ],
)
def test_boxes_move(
    crop: tuple[int, int, int, int], flip: bool, expected: list[tuple[int, ...]]
) -> None:
    boxes = [(10, 12, 60, 50), (30, 5, 70, 58), (2, 2, 8, 9), (0, 0, 80, 60)]
    geometry = Geometry((60, 80), (0, 0), crop, "linear", flip)
    moved, keep = move_boxes(np.array(boxes, np.float32), geometry, (crop[3], crop[2]))
    np.testing.assert_array_equal(moved[keep], np.reshape(expected, (-1, 4)))


@pytest.mark.parametrize(
    ("pixel", "expected"),  # image_transforms.npz, image and color_13 at (0, 0) and (3, 5)
    [
        ((186, 43, 0), (0.32403, 123.97184, -17.12508)),
        ((212, 139, 252), (186.49216, 181.70744, 99.33960)),
    ],
)
def test_colour(pixel: tuple[int, ...], expected: tuple[float, ...]) -> None:
    """The random numbers of that run: brightness, saturation, hue and contrast."""
    colour = 1.1073433442080507 * (
        hue_matrix(-8.675694298242952 * np.pi) @ saturation_matrix(0.6791534794315778)
    )
    ours = colour @ (np.array(pixel) - 16.797361917765613)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
