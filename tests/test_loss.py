"""The loss at the slots against the dense loss, and against the reference's own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from tests.dense_oracle import dense_ignored, dense_loss, dense_targets
from triscale.anchors import YOLO3_ANCHORS, make_grid
from triscale.assign import assign, ignored
from triscale.boxes import box_iou
from triscale.decode import decode_boxes
from triscale.errors import UserError
from triscale.loss import LossConfig, yolo_loss
from triscale.overlap import penalised_iou
from triscale.types import Losses, Predictions, Targets

SIZE = (64, 96)
N = (2 * 3 + 4 * 6 + 8 * 12) * 3
GRID = make_grid(YOLO3_ANCHORS, SIZE)
NAMES = ("objectness", "centre", "scale", "classes")


def random_predictions(seed: int, batch: int, num_classes: int) -> Predictions:
    """Leaves that collect gradients."""
    rng = torch.Generator().manual_seed(seed)
    widths = ((N, 2), (N, 2), (N,), (N, num_classes))
    fields = [torch.randn(batch, *w, generator=rng) * 2 for w in widths]
    return Predictions(*(field.requires_grad_() for field in fields))


def no_targets(batch: int, num_boxes: int) -> Targets:
    """Padding only."""
    whole, zero = torch.zeros(batch, num_boxes, dtype=torch.int64), torch.zeros(batch, num_boxes)
    pair, box = torch.zeros(batch, num_boxes, 2), torch.zeros(batch, num_boxes, 4)
    return Targets(whole, pair, pair, box, zero, whole, zero)


def gradients(predictions: Predictions, losses: Losses) -> list[torch.Tensor]:
    return list(torch.autograd.grad(losses.total, list(predictions)))


@pytest.mark.parametrize("num_boxes", [0, 1, 3])
def test_without_objects_only_the_background_counts(num_boxes: int) -> None:
    predictions = random_predictions(0, 2, 5)
    background = torch.zeros(2, N, dtype=torch.bool)
    losses = yolo_loss(predictions, no_targets(2, num_boxes), background, GRID, LossConfig())
    expected = torch.nn.functional.softplus(predictions.objectness).sum() / 2
    torch.testing.assert_close(losses.objectness, expected)
    assert losses.centre == losses.scale == losses.classes == 0
    grads = gradients(predictions, losses)
    torch.testing.assert_close(grads[2], predictions.objectness.sigmoid() / 2)
    assert all(grads[i].count_nonzero() == 0 for i in (0, 1, 3))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(
    ("batch", "num_boxes", "num_classes"), [(2, 0, 3), (1, 1, 1), (3, 25, 5), (2, 60, 80)]
)
def test_equals_the_dense_way(batch: int, num_boxes: int, num_classes: int, smooth: bool) -> None:
    rng = np.random.default_rng(num_boxes)
    # On a coarse raster, so that objects share predictions; some centres lie outside.
    centre = rng.integers(-1, 8, (batch, num_boxes, 2)) / 6 * [SIZE[1], SIZE[0]]
    wh = rng.choice([0.5, 14.0, 31.0, 60.0], (batch, num_boxes, 2))
    boxes = torch.from_numpy(np.concatenate([centre - wh / 2, centre + wh / 2], -1)).float()
    labels = torch.from_numpy(rng.integers(-1, num_classes, (batch, num_boxes)))
    weights = torch.from_numpy(rng.choice([0.0, 0.4, 0.6, 1.0], (batch, num_boxes))).float()
    pred_boxes = torch.from_numpy(rng.uniform(0, 40, (batch, N, 4))).float()
    pred_boxes[..., 2:] += pred_boxes[..., :2]
    predictions = random_predictions(1, batch, num_classes)

    grid = make_grid(YOLO3_ANCHORS, SIZE)
    targets = assign(boxes, labels, weights, grid, size=SIZE)
    config = LossConfig(label_smooth=smooth, ignore_iou=0.4)
    ignore = ignored(pred_boxes, boxes, labels, threshold=config.ignore_iou)
    losses = yolo_loss(predictions, targets, ignore, GRID, config)

    dense, dense_ignore = [], []
    for b in range(batch):
        real = labels[b] >= 0
        dense.append(
            dense_targets(
                boxes[b].double().numpy(),
                labels[b].numpy(),
                weights[b].double().numpy(),
                size=SIZE,
                anchors=YOLO3_ANCHORS,
            )
        )
        objects = boxes[b][real].double().numpy()
        dense_ignore.append(dense_ignored(pred_boxes[b].double().numpy(), objects, threshold=0.4))
    expected = dense_loss(predictions, dense, np.stack(dense_ignore), smooth=smooth)

    for ours, theirs, name in zip(losses[:4], expected, NAMES, strict=True):
        torch.testing.assert_close(ours, theirs.mean(), rtol=1e-5, atol=1e-5, msg=name)
    dense_total = torch.stack(expected).sum(0).mean()
    for ours, theirs in zip(
        gradients(predictions, losses),
        torch.autograd.grad(dense_total, list(predictions)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.golden
def test_golden_loss(golden: Path) -> None:
    arrays = {name: torch.from_numpy(a) for name, a in np.load(golden / "loss_block.npz").items()}
    predictions = Predictions(
        arrays["box_centers"].requires_grad_(),
        arrays["box_scales"].requires_grad_(),
        arrays["objness"][..., 0].requires_grad_(),
        arrays["cls_preds"].requires_grad_(),
    )
    # All predictions as slots, in reverse: those without an object get weight 0.
    slot = torch.arange(30).flip(0).expand(2, 30)
    given = arrays["objness_t"][..., 0].flip(1)
    targets = Targets(
        slot=slot * (given > 0),
        centre=arrays["center_t"].flip(1),
        scale=arrays["scale_t"].flip(1),
        box=torch.zeros(2, 30, 4),
        box_weight=arrays["weight_t"][..., 0].flip(1),
        label=arrays["class_t"].flip(1).argmax(-1),
        weight=given.clamp(min=0),
    )
    ignore = arrays["objness_t"][..., 0] < 0
    losses = yolo_loss(predictions, targets, ignore, GRID, LossConfig())
    for ours, name in zip(losses[:4], ("obj", "ctr", "scl", "cls"), strict=True):
        torch.testing.assert_close(ours, arrays[f"loss_{name}"].mean(), rtol=1e-5, atol=1e-5)
    # The reference differentiates the sum over the batch of two.
    ours = [2 * grad for grad in gradients(predictions, losses)]
    for grad, name in zip(ours, ("box_centers", "box_scales", "objness", "cls_preds"), strict=True):
        expected = arrays[f"grad_{name}"].reshape(grad.shape)
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("num_classes", [20, 80])
def test_golden_class_targets(num_classes: int, smooth: bool, golden: Path) -> None:
    """The gradient of BCE at logit 0 is (1/2 - target): it shows the targets that were used."""
    arrays = np.load(golden / "merged_targets.npz")
    given = torch.from_numpy(arrays[f"C{num_classes}_in_obj"][..., 0])
    merged = torch.from_numpy(arrays[f"C{num_classes}_smooth{int(smooth)}_cls"])
    mask = torch.from_numpy(arrays[f"C{num_classes}_smooth{int(smooth)}_clsmask"])
    batch, n = given.shape
    label = torch.from_numpy(arrays[f"C{num_classes}_in_cls"]).argmax(-1)
    pair, box = torch.zeros(batch, n, 2), torch.zeros(batch, n, 4)
    slot = torch.arange(n).expand(batch, n)
    classes = torch.zeros(batch, n, num_classes, requires_grad=True)
    losses = yolo_loss(
        Predictions(pair, pair, torch.zeros(batch, n), classes),
        Targets(slot * (given > 0), pair, pair, box, torch.ones(batch, n), label, given),
        torch.zeros(batch, n, dtype=torch.bool),
        GRID,
        LossConfig(label_smooth=smooth),
        global_batch=1,
    )
    (grad,) = torch.autograd.grad(losses.classes, classes)
    assert mask.sum() == 5 * num_classes
    torch.testing.assert_close(grad, (0.5 - merged) * mask, rtol=1e-5, atol=1e-6)


def test_loser_and_padding_leave_the_winner_alone() -> None:
    """Slot 0 itself has an object, and rows of weight 0 point there from both sides."""
    targets = no_targets(1, 3)._replace(
        weight=torch.tensor([[0.0, 0.6, 0.0]]), box_weight=torch.full((1, 3), 1.5)
    )
    predictions = random_predictions(3, 1, 4)
    background = torch.zeros(1, N, dtype=torch.bool)
    got = yolo_loss(predictions, targets, background, GRID, LossConfig())
    alone = Targets(*(field[:, 1:2] for field in targets))
    want = yolo_loss(predictions, alone, background, GRID, LossConfig())
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
    entropy = torch.nn.functional.softplus(predictions.objectness)
    expected = entropy[0, 1:].sum() + 0.6 * torch.nn.functional.softplus(
        -predictions.objectness[0, 0]
    )
    torch.testing.assert_close(got.objectness, expected)


def test_ignored_positive_stays_positive() -> None:
    targets = no_targets(1, 1)._replace(weight=torch.ones(1, 1))
    predictions = random_predictions(4, 1, 2)
    ignore = torch.ones(1, N, dtype=torch.bool)
    losses = yolo_loss(predictions, targets, ignore, GRID, LossConfig())
    torch.testing.assert_close(
        losses.objectness, torch.nn.functional.softplus(-predictions.objectness[0, 0])
    )


def test_parts_of_a_global_batch_add_up() -> None:
    predictions = random_predictions(5, 4, 3)
    targets = no_targets(4, 2)._replace(weight=torch.ones(4, 2) * torch.tensor([1.0, 0.0]))
    background = torch.zeros(4, N, dtype=torch.bool)
    whole = yolo_loss(predictions, targets, background, GRID, LossConfig())
    parts = [
        yolo_loss(
            Predictions(*(field[part] for field in predictions)),
            Targets(*(field[part] for field in targets)),
            background[part],
            GRID,
            LossConfig(),
            global_batch=4,
        )
        for part in (slice(0, 1), slice(1, 4))
    ]
    for name in NAMES:
        torch.testing.assert_close(
            getattr(parts[0], name) + getattr(parts[1], name), getattr(whole, name)
        )


def test_float32_under_autocast() -> None:
    exact = random_predictions(6, 2, 3)
    half = Predictions(*(field.detach().bfloat16() for field in exact))
    targets = no_targets(2, 1)._replace(weight=torch.ones(2, 1))
    background = torch.zeros(2, N, dtype=torch.bool)
    config = LossConfig(label_smooth=True)  # 0.975 is no bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = yolo_loss(half, targets, background, GRID, config)
    rounded = Predictions(*(field.float() for field in half))
    expected = yolo_loss(rounded, targets, background, GRID, config)
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_no_value_is_read_back_from_the_device() -> None:
    predictions = Predictions(*(f.detach().to("meta") for f in random_predictions(7, 2, 3)))
    targets = Targets(*(field.to("meta") for field in no_targets(2, 4)))
    ignore = torch.empty(2, N, dtype=torch.bool, device="meta")
    losses = yolo_loss(predictions, targets, ignore, GRID, LossConfig(label_smooth=True))
    assert losses.total.shape == ()


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan")])
def test_config_refuses(value: float) -> None:
    with pytest.raises(UserError, match=r"^loss\.ignore_iou: expected .*, got "):
        LossConfig(ignore_iou=value)


def objects(batch: int) -> tuple[Targets, Predictions]:
    """Three rows, the last one padding, and a network that says something about them."""
    targets = no_targets(batch, 3)._replace(
        slot=torch.tensor([[7, 50, 0]]).expand(batch, 3),
        box=torch.tensor([[[10.0, 12, 40, 50], [30.0, 3, 60, 33], [-1.0, -1, -1, -1]]]).expand(
            batch, 3, 4
        ),
        box_weight=torch.full((batch, 3), 1.5),
        weight=torch.tensor([[1.0, 0.4, 0.0]]).expand(batch, 3),
    )
    return targets, random_predictions(8, batch, 4)


@pytest.mark.parametrize("kind", ["giou", "ciou"])
def test_the_iou_term(kind: Literal["giou", "ciou"]) -> None:
    targets, predictions = objects(2)
    background = torch.zeros(2, N, dtype=torch.bool)
    plain = yolo_loss(predictions, targets, background, GRID, LossConfig())
    losses = yolo_loss(predictions, targets, background, GRID, LossConfig(iou=kind, iou_gain=2.5))
    assert plain.iou == 0
    for name in NAMES:
        assert getattr(losses, name) == getattr(plain, name)
    rows = decode_boxes(predictions, GRID)[:, [7, 50]]
    lack = 1 - penalised_iou(rows, targets.box[:, :2], kind=kind)  # (2, 2)
    expected = 2.5 * (lack * torch.tensor([1.0, 0.4])).sum() / 2
    torch.testing.assert_close(losses.iou, expected)
    grads = torch.autograd.grad(losses.iou, [predictions.centres, predictions.scales])
    for grad in grads:
        assert sorted(set(grad.nonzero()[:, 1].tolist())) == [7, 50]


def test_objectness_may_be_the_overlap() -> None:
    targets, predictions = objects(1)
    background = torch.zeros(1, N, dtype=torch.bool)
    config = LossConfig(objectness_target="iou")
    boxes = decode_boxes(predictions, GRID).detach()
    with torch.no_grad():  # it says what it should: nothing is left to learn there
        for slot, box in zip((7, 50), targets.box[0], strict=False):
            predictions.objectness[0, slot] = box_iou(boxes[0, slot], box).logit()
    losses = yolo_loss(predictions, targets, background, GRID, config)
    slopes = torch.autograd.grad(losses.objectness, list(predictions), allow_unused=True)
    assert slopes[0] is slopes[1] is slopes[3] is None  # the overlap is a target, not a way
    assert slopes[2] is not None
    assert slopes[2][0, [7, 50]].abs().max() < 1e-6
    assert slopes[2][0, 0] > 0  # where the padding points, it is background


def test_gains_weigh_the_terms() -> None:
    targets, predictions = objects(2)
    background = torch.zeros(2, N, dtype=torch.bool)
    plain = yolo_loss(predictions, targets, background, GRID, LossConfig())
    config = LossConfig(distance_gain=0.5, objectness_gain=3.0, class_gain=0.25)
    weighed = yolo_loss(predictions, targets, background, GRID, config)
    for name, gain in zip(NAMES, (3.0, 0.5, 0.5, 0.25), strict=True):
        torch.testing.assert_close(getattr(weighed, name), gain * getattr(plain, name))
    with pytest.raises(UserError, match=r"loss\.class_gain: expected 0 or a positive number"):
        LossConfig(class_gain=-1.0)


@pytest.mark.parametrize("size", [50.0, 100.0, -100.0])
@pytest.mark.parametrize("kind", ["giou", "ciou"])
def test_sizes_that_explode_leave_a_way_back(kind: Literal["giou", "ciou"], size: float) -> None:
    targets, predictions = objects(1)
    with torch.no_grad():
        predictions.scales[0, [7, 50]] = size
    background = torch.zeros(1, N, dtype=torch.bool)
    config = LossConfig(iou=kind, iou_gain=2.0, objectness_target="iou")
    losses = yolo_loss(predictions, targets, background, GRID, config)
    slopes = gradients(predictions, losses)
    assert losses.total.isfinite()
    assert all(slope.isfinite().all() for slope in slopes)
    assert (slopes[1][0, 7].sign() == (1 if size > 0 else -1)).all()
