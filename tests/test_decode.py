"""Decoding and suppression against the reference's arrays and a loop that does it by the book."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from triscale.anchors import YOLO3_ANCHORS, make_grid
from triscale.decode import (
    DecodeConfig,
    Decoded,
    decode_boxes,
    decode_scores,
    detect,
    detections,
    nms,
)
from triscale.errors import UserError
from triscale.types import Predictions

NETS = ["tiny", "mobilenet0.25", "mobilenet1.0", "darknet53"]
Rows = list[tuple[float, int, list[float]]]  # score, label, box


def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    def area(width: np.float32, height: np.float32) -> np.float32:
        return max(width, np.float32(0)) * max(height, np.float32(0))

    inter = area(min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))
    union = area(a[2] - a[0], a[3] - a[1]) + area(b[2] - b[0], b[3] - b[1]) - inter
    return inter / union if union > 0 else np.float32(0)


def by_the_book(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    lengths: tuple[int, ...],
    config: DecodeConfig,
) -> Rows:
    """What one picture, boxes (N, 4) and scores (N, C), must give: plain loops."""
    pairs: list[tuple[int, int]] = []  # (position, class) in the reference's flat order
    start = 0
    for length in lengths:
        pairs += [(start + i, c) for c in range(scores.shape[1]) for i in range(length)]
        start += length
    pairs = [p for p in pairs if scores[p] > config.score_threshold]
    pairs.sort(key=lambda p: -scores[p])  # stable
    kept: list[tuple[int, int]] = []
    for n, c in pairs[: config.top_k]:
        rivals = (m for m, d in kept if d == c)
        if not config.suppress or not any(
            iou(boxes[m], boxes[n]) > config.iou_threshold for m in rivals
        ):
            kept.append((n, c))
    rows = [(float(scores[n, c]), c, boxes[n].tolist()) for n, c in kept]
    return rows[: config.num_rows]


def used_rows(decoded: Decoded, image: int) -> Rows:
    """The used rows of one picture, after a check that they are the first ones."""
    scores, labels = decoded.scores[image].tolist(), decoded.labels[image].tolist()
    count = sum(label >= 0 for label in labels)
    assert all(x == -1 for x in [*scores[count:], *labels[count:]])
    assert (decoded.boxes[image, count:] == -1).all()
    boxes = decoded.boxes[image].tolist()
    return list(zip(scores[:count], labels[:count], boxes[:count], strict=True))


def random_case(
    seed: int,
    lengths: tuple[int, ...],
    num_classes: int,
    *,
    levels: int,
    batch: int = 2,
    nan: float = 0.05,
) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, 4) on a lattice, some inverted, and scores (B, N, C), some tied or NaN."""
    rng = np.random.default_rng(seed)
    shape = (batch, sum(lengths))
    corner, size = rng.integers(0, 6, (*shape, 2)), rng.integers(-1, 5, (*shape, 2))
    scores = rng.integers(0, levels + 1, (*shape, num_classes)) / np.float32(levels)
    scores[rng.random(scores.shape) < nan] = np.nan
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32) * 7.3
    return torch.from_numpy(boxes), torch.from_numpy(scores.astype(np.float32))


@pytest.mark.parametrize(
    ("lengths", "num_classes", "levels", "config"),
    [
        ((0, 0, 0), 3, 5, DecodeConfig()),
        ((1,), 1, 1, DecodeConfig()),
        ((3, 12), 2, 5, DecodeConfig()),  # fewer pairs than rows
        ((3, 12, 48), 5, 5, DecodeConfig()),  # fewer pairs than candidates
        ((3, 12, 48), 5, 1000, DecodeConfig(top_k=50)),
        ((12, 48, 192), 4, 3, DecodeConfig(top_k=60, keep=20)),  # ties across all borders
        ((12, 48, 192), 4, 1, DecodeConfig(top_k=100)),  # ties only
        ((12, 48, 192), 4, 10_000, DecodeConfig(top_k=60)),  # hardly any
        ((12, 48, 192), 4, 300, DecodeConfig(top_k=30, score_threshold=0.0)),
        ((12, 48, 192), 4, 5000, DecodeConfig(top_k=10_000, score_threshold=0.98)),
        ((12, 48), 20, 50, DecodeConfig(score_threshold=0.9)),  # few candidates
        ((12, 48), 3, 50, DecodeConfig(score_threshold=0.5, iou_threshold=0.05)),
        ((12, 48), 3, 50, DecodeConfig(top_k=70, keep=0)),
        ((12, 48), 3, 50, DecodeConfig(top_k=70, keep=5, iou_threshold=1.0)),
        ((12, 48), 3, 50, DecodeConfig(top_k=70, keep=5, iou_threshold=0.0)),
        ((12, 48), 3, 1, DecodeConfig(score_threshold=0.999999, top_k=1)),
    ],
)
@pytest.mark.parametrize(("seed", "nan"), [(0, 0.05), (1, 0.05), (2, 0.0), (3, 0.0), (4, 0.001)])
def test_nms_equals_the_loop(
    lengths: tuple[int, ...],
    num_classes: int,
    levels: int,
    config: DecodeConfig,
    seed: int,
    nan: float,
) -> None:
    boxes, scores = random_case(seed, lengths, num_classes, levels=levels, nan=nan)
    decoded = nms(boxes, scores, lengths=lengths, config=config)
    assert decoded.scores.shape == (2, config.num_rows)
    assert decoded.labels.dtype == torch.int64
    for i in range(2):
        expected = by_the_book(boxes[i].numpy(), scores[i].numpy(), lengths, config)
        assert used_rows(decoded, i) == expected


def test_nms_follows_a_chain_of_boxes_to_its_end() -> None:
    """Each box beats the next only, so every second one survives: the most rounds there can be."""
    left = torch.arange(60.0)[:, None] * 3
    boxes = torch.cat([left, torch.zeros(60, 1), left + 10, torch.full((60, 1), 10.0)], 1)
    scores = torch.linspace(0.9, 0.1, 60)[:, None]
    config = DecodeConfig(iou_threshold=0.5)  # neighbours: 7 / 13; next but one: 4 / 16
    decoded = nms(boxes[None], scores[None], lengths=(60,), config=config)
    assert torch.equal(decoded.boxes[0, :30], boxes[::2])
    assert (decoded.labels[0, 30:] == -1).all()


@pytest.mark.parametrize("levels", [1, 10_000])
def test_the_way_of_a_gpu_gives_the_same(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There nothing is cut to size, because sizes would have to be waited for."""
    lengths, config = (12, 48, 192), DecodeConfig(top_k=60, score_threshold=0.98)
    boxes, scores = random_case(0, lengths, 4, levels=levels)
    cut = nms(boxes, scores, lengths=lengths, config=config)
    monkeypatch.setattr("triscale.decode._used", lambda wanted: wanted.shape[1])
    whole = nms(boxes, scores, lengths=lengths, config=config)
    assert all(torch.equal(a, b) for a, b in zip(cut, whole, strict=True))
    assert (cut.labels >= 0).any()


def test_nms_of_no_pictures() -> None:
    decoded = nms(torch.zeros(0, 6, 4), torch.zeros(0, 6, 2), lengths=(6,), config=DecodeConfig())
    assert decoded.boxes.shape == (0, 100, 4)


def exact_logits(number: int) -> Tensor:
    """Logits, extreme ones too, whose sigmoid is the same to the bit in every kernel of a CPU.

    Kernels for vectors and for single numbers differ in the last bit of some, and which of them
    comes to decode a score depends on its neighbours in memory.
    """
    extreme = torch.tensor([-torch.inf, -104.0, -30.0, 17.0, 18.0, 40.0, torch.inf])
    logits = torch.cat([torch.linspace(-6, 6, number), extreme])
    column = torch.stack([logits, logits], 1)[:, 0]
    return logits[logits.repeat(64).sigmoid()[: len(logits)] == column.sigmoid()]


@pytest.mark.parametrize("num_logits", [0, 3, 50, 20_000])  # from ties only to hardly any
@pytest.mark.parametrize(
    ("num_classes", "nan", "config"),
    [
        (1, 0.0, DecodeConfig()),
        (7, 0.0, DecodeConfig()),
        (7, 0.001, DecodeConfig()),
        (7, 0.0, DecodeConfig(top_k=40, keep=0)),
        (7, 0.001, DecodeConfig(top_k=40, score_threshold=0.0)),
        (7, 0.0, DecodeConfig(top_k=1000, score_threshold=0.98)),
        (7, 0.0, DecodeConfig(score_threshold=0.9999999, iou_threshold=1.0)),
    ],
)
def test_detect_equals_nms_of_everything(
    num_logits: int, num_classes: int, nan: float, config: DecodeConfig
) -> None:
    grid = make_grid(YOLO3_ANCHORS, (64, 96))
    logits, n = exact_logits(num_logits), len(grid.cells)
    rng = np.random.default_rng(num_logits)
    raw = logits[torch.from_numpy(rng.integers(0, len(logits), (3, n, 5 + num_classes)))]
    raw[..., 4:][torch.from_numpy(rng.random(raw[..., 4:].shape) < nan)] = torch.nan
    raw[..., 2:4] = 0  # every kernel knows exp(0)
    raw[2, :, 4] = -30  # nothing in the last picture
    predictions = Predictions(raw[..., :2], raw[..., 2:4], raw[..., 4], raw[..., 5:])
    boxes, scores = decode_boxes(predictions, grid), decode_scores(predictions)
    lengths = tuple(3 * rows * columns for rows, columns in grid.maps)
    decoded = detect(predictions, grid, config)
    for i in range(3):
        book = by_the_book(boxes[i].numpy(), scores[i].numpy(), lengths, config)
        assert used_rows(decoded, i) == book
    whole = nms(boxes, scores, lengths=lengths, config=config)
    assert all(torch.equal(a, b) for a, b in zip(decoded, whole, strict=True))


@pytest.mark.golden
@pytest.mark.parametrize("case", ["edge", "exact_iou", "ties", "oneclass", "multi"])
@pytest.mark.parametrize(
    ("iou_threshold", "top_k"), [(0.45, 400), (0.45, 50), (0.5, -1), (0.3, 400)]
)
def test_nms_equals_the_reference(
    golden: Path, case: str, iou_threshold: float, top_k: int
) -> None:
    arrays = np.load(golden / "box_nms.npz")
    rows = arrays[f"{case}_in"]  # (B, n, 6): class, score, box
    expected = torch.from_numpy(arrays[f"{case}_out_t{iou_threshold}_k{top_k}"])
    batch, n = rows.shape[:2]
    scores = np.zeros((batch, n, 5), np.float32)
    image, row = np.nonzero(rows[..., 0] >= 0)  # class -1 is background
    scores[image, row, rows[image, row, 0].astype(int)] = rows[image, row, 1]
    limit = top_k if top_k > 0 else n
    config = DecodeConfig(iou_threshold=iou_threshold, top_k=limit, keep=0)
    # One position per "stride": then the flat order is that of the rows.
    boxes = torch.from_numpy(rows[..., 2:])
    decoded = nms(boxes, torch.from_numpy(scores), lengths=(1,) * n, config=config)
    rest = min(limit, n)
    assert torch.equal(decoded.labels[:, :rest], expected[:, :rest, 0].long())
    assert torch.equal(decoded.scores[:, :rest], expected[:, :rest, 1])
    assert torch.equal(decoded.boxes[:, :rest], expected[:, :rest, 2:])
    assert (expected[:, rest:] == -1).all()


def golden_predictions(arrays: dict[str, NDArray[np.float32]], case: int) -> Predictions:
    """The raw maps of the reference, (B, A * (5 + C), h, w) each, as Predictions."""
    flat: list[NDArray[np.float32]] = []
    for stride in (32, 16, 8):
        maps = arrays[f"case{case}_pred_stride{stride}"]
        batch, channels, height, width = maps.shape
        maps = maps.reshape(batch, 3, channels // 3, height, width).transpose(0, 3, 4, 1, 2)
        flat.append(maps.reshape(batch, -1, channels // 3))
    raw = torch.from_numpy(np.concatenate(flat, 1))
    return Predictions(raw[..., :2], raw[..., 2:4], raw[..., 4], raw[..., 5:])


@pytest.mark.golden
@pytest.mark.parametrize("net", NETS)
def test_detect_equals_the_reference(golden: Path, net: str) -> None:
    arrays = dict(np.load(golden / f"net_{net}.npz"))
    configs = {
        "default": DecodeConfig(),
        "all": DecodeConfig(keep=0),
        "t3_k50_p10": DecodeConfig(iou_threshold=0.3, top_k=50, keep=10),
    }
    cases = [k for k in range(9) if f"case{k}_boxes" in arrays]
    assert cases
    for k in cases:
        size = tuple(arrays[f"case{k}_x_seed_shape"][-2:].tolist())
        grid = make_grid(YOLO3_ANCHORS, size)
        predictions = golden_predictions(arrays, k)
        boxes = torch.from_numpy(arrays[f"case{k}_boxes"])
        scores = torch.from_numpy(arrays[f"case{k}_scores"]).transpose(1, 2)
        torch.testing.assert_close(decode_boxes(predictions, grid), boxes, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(decode_scores(predictions), scores, rtol=1e-5, atol=1e-7)

        lengths = tuple(3 * rows * columns for rows, columns in grid.maps)
        for name, config in configs.items():
            expected = [
                torch.from_numpy(arrays[f"case{k}_nms_{name}_{part}"])
                for part in ("ids", "scores", "bboxes")
            ]
            exact = nms(boxes, scores, lengths=lengths, config=config)
            rows = expected[0].shape[1]  # "all" was cut to its longest image
            assert torch.equal(exact.labels[:, :rows], expected[0][..., 0].long())
            assert torch.equal(exact.scores[:, :rows], expected[1][..., 0])
            assert torch.equal(exact.boxes[:, :rows], expected[2])
            assert (exact.labels[:, rows:] == -1).all()
            decoded = detect(predictions, grid, config)
            torch.testing.assert_close(decoded.scores[:, :rows], expected[1][..., 0])


def test_scores_are_float32_under_autocast() -> None:
    grid = make_grid(YOLO3_ANCHORS, (32, 32))
    n = len(grid.cells)
    half = [torch.full(s, 0.5, dtype=torch.bfloat16) for s in [(1, n, 2), (1, n), (1, n, 3)]]
    predictions = Predictions(half[0], half[0], half[1], half[2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = detect(predictions, grid, DecodeConfig())
    assert decoded.scores.dtype == decoded.boxes.dtype == torch.float32
    # sigmoid(0.5) squared: bfloat16 would give 0.3867.
    assert decoded.scores[0, 0].item() == pytest.approx(0.38745561, abs=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_does_not_matter() -> None:
    boxes, scores = random_case(0, (48, 192, 768), 20, levels=200, batch=4)
    here = nms(boxes, scores, lengths=(48, 192, 768), config=DecodeConfig())
    there = nms(boxes.cuda(), scores.cuda(), lengths=(48, 192, 768), config=DecodeConfig())
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("used", [0, 1, 2])
def test_detections_are_in_pixels_of_the_picture(used: int) -> None:
    boxes = torch.tensor([[[104.0, 208.0, 208.0, 416.0], [-20.0, -5.0, 500.0, 430.0]]])
    decoded = Decoded(boxes, torch.tensor([[0.9, 0.5]]), torch.tensor([[3, 0]]))
    decoded.scores[:, used:] = -1
    [found] = detections(
        decoded, (416, 416), original_sizes=torch.tensor([[300, 640]]), fit="stretch"
    )
    expected = [[160.0, 150.0, 320.0, 300.0], [0.0, 0.0, 640.0, 300.0]]
    np.testing.assert_allclose(found.boxes, np.array(expected[:used]).reshape(-1, 4), rtol=1e-6)
    assert found.boxes.dtype == np.float32
    assert found.labels.tolist() == [3, 0][:used]
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.5], np.float32)[:used])


def test_detections_in_a_letterbox() -> None:
    """A picture of 200 x 100 lies in rows 16 to 48 of a 64 x 64 input, at 0.32 of its size."""
    boxes = torch.tensor([[[16.0, 24.0, 32.0, 32.0], [0.0, 0.0, 64.0, 64.0]]])
    decoded = Decoded(boxes, torch.tensor([[0.9, 0.5]]), torch.tensor([[3, 0]]))
    sizes = torch.tensor([[100, 200]])
    [found] = detections(decoded, (64, 64), original_sizes=sizes, fit="letterbox")
    np.testing.assert_allclose(found.boxes, [[50, 25, 100, 50], [0, 0, 200, 100]], rtol=1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"score_threshold": -0.1}, "score_threshold"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 10**6}, "top_k"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DecodeConfig(**setting)  # type: ignore[arg-type]
