"""The loader: the same batches from any number of workers, one clear error for a bad picture."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.data.tiny import make_sample, noise, write_index
from triscale.data.augment import AugmentConfig, View, apply_view
from triscale.data.index import Index
from triscale.data.loader import DrawDataset, collate, load, make_loader, pad, read, stack
from triscale.data.pictures import read_picture
from triscale.data.plan import Plan, PlanSampler, validation_draws
from triscale.errors import UserError
from triscale.normalise import network_input
from triscale.pixels import InputConfig
from triscale.types import Batch, Draw, Sample

# What a mixup leaves if nothing else is random: the mix, resized.
STILL = AugmentConfig(
    colour=0,
    expand=0,
    crop=False,
    flip=0,
    interpolations=("nearest",),
    random_shape=False,
    mixup=True,
    mixup_off_epochs=1,
)
SHAPES = AugmentConfig(
    shape_min=32, shape_max=96, shape_step=32, shape_interval=2, mixup=True, mixup_off_epochs=1
)

# On a machine with fewer cores than workers torch advises against it.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Eleven pictures of noise, of different sizes, with 0, 1, 2, 3, 0, ... objects."""
    rng = np.random.default_rng(0)
    pictures = [noise(*rng.integers(30, 60, 2).tolist(), seed=i) for i in range(11)]
    row = (3.0, 2.0, 25.0, 21.0, 1.0)
    return write_index(tmp_path, pictures, [[row] * (i % 4) for i in range(11)])


@pytest.fixture
def flat(tmp_path: Path) -> Index:
    """Six pictures of one size, each of one grey level (40 times its number), with one object."""
    pictures = [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(6)]
    return write_index(tmp_path, pictures, [[(4.0, 4.0, 20.0, 20.0, i)] for i in range(6)])


def batches(index: Index, config: AugmentConfig, *, workers: int, epochs: int = 3) -> list[Batch]:
    plan = Plan(len(index), 4, epochs, seed=3, size=32, augment=config)
    sampler = PlanSampler(plan, start=0, stop=plan.steps)
    return list(make_loader(index, sampler, config=config, workers=workers))


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for name, x, y in zip(Batch._fields, a, b, strict=True):
            assert x.dtype == y.dtype, name
            assert torch.equal(x, y), name


def test_any_number_of_workers_gives_the_same_batches(index: Index) -> None:
    alone = batches(index, SHAPES, workers=0)
    assert {batch.images.shape[1] for batch in alone} == {32, 64, 96}
    assert len({batch.boxes.shape[1] for batch in alone}) > 1
    assert_equal(alone, batches(index, SHAPES, workers=0))
    for workers in (1, 3):
        assert_equal(batches(index, SHAPES, workers=workers), alone)
    fast = replace(SHAPES, fast_resize=True)
    assert_equal(batches(index, fast, workers=2), batches(index, fast, workers=0))


def test_validation_is_the_same_with_workers(index: Index) -> None:
    draws = validation_draws(len(index), 64, batch_size=4)
    results = [
        list(make_loader(index, draws, config=SHAPES, workers=workers)) for workers in (0, 2)
    ]
    assert_equal(*results)
    assert torch.cat([batch.image_ids for batch in results[0]]).tolist() == list(range(11))
    sizes = torch.cat([batch.original_sizes for batch in results[0]])
    np.testing.assert_array_equal(sizes, index.sizes)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_batches(index: Index, workers: int) -> None:
    assert list(make_loader(index, [], config=SHAPES, workers=workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_mixup_reaches_the_workers_and_ends_there_in_time(flat: Index, workers: int) -> None:
    plan = Plan(len(flat), 4, 3, seed=3, size=32, augment=STILL)
    loaded = batches(flat, STILL, workers=workers)
    assert len(loaded) == plan.steps
    for step, batch in enumerate(loaded):
        mixed = plan.epoch_of(step) < 2
        for draw, picture, labels, weights in zip(
            plan.draws(step), batch.images, batch.labels, batch.weights, strict=True
        ):
            if not mixed:
                assert torch.unique(picture).tolist() == [40 * draw.index]
                assert labels.tolist() == [draw.index]
                assert weights.tolist() == [1]
                continue
            assert draw.partner is not None
            level = draw.ratio * 40 * draw.index + (1 - draw.ratio) * 40 * draw.partner
            assert torch.unique(picture).tolist() == [int(level)]
            assert labels.tolist() == [draw.index, draw.partner]
            np.testing.assert_allclose(weights, [draw.ratio, 1 - draw.ratio], rtol=1e-6)


@pytest.mark.parametrize("fast", [False, True])
def test_mosaics_are_the_same_with_workers(index: Index, fast: bool) -> None:
    config = replace(SHAPES, fast_resize=fast, mosaic=0.6, mosaic_off_epochs=1)
    alone = batches(index, config, workers=0)
    for workers in (1, 3):
        assert_equal(batches(index, config, workers=workers), alone)
    plan = Plan(len(index), 4, 3, seed=3, size=32, augment=config)
    draws = [plan.draws(step) for step in range(plan.steps)]
    # without what the loader keeps of the pictures before
    assert_equal([collate([read(index, d, config) for d in batch]) for batch in draws], alone)
    tiled = [any(draw.tiles for draw in batch) for batch in draws]
    assert tiled == [plan.epoch_of(step) < 2 for step in range(plan.steps)]


def test_mosaics_reach_the_workers(flat: Index) -> None:
    config = replace(STILL, mixup=False, mosaic=1, mosaic_off_epochs=1)
    plan = Plan(len(flat), 4, 3, seed=3, size=32, augment=config)
    for step, batch in enumerate(batches(flat, config, workers=2)):
        for draw, picture, labels in zip(plan.draws(step), batch.images, batch.labels, strict=True):
            shown = {draw.index, *draw.tiles}
            assert len(draw.tiles) == 3 * (plan.epoch_of(step) < 2)
            assert set(torch.unique(picture).tolist()) == {40 * image for image in shown}
            assert set(labels.tolist()) - {-1} == shown


@pytest.mark.parametrize("fast", [False, True])
def test_a_mosaics_pictures_are_decoded_once(
    tmp_path: Path, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [noise(100, 100, seed=i) for i in range(16)]
    index = write_index(tmp_path, pictures, [[]] * 16)
    read_before: list[tuple[Path, int]] = []

    def count(path: Path, *, reduction: int) -> NDArray[np.uint8]:
        read_before.append((path, reduction))
        return read_picture(path, reduction=reduction)

    monkeypatch.setattr("triscale.data.loader.read_picture", count)
    config = AugmentConfig(random_shape=False, mosaic=1, mosaic_off_epochs=0, fast_resize=fast)
    plan = Plan(16, 16, 1, seed=0, size=64, augment=config)
    list(make_loader(index, PlanSampler(plan, start=0, stop=1), config=config, workers=0))
    assert len(set(read_before)) == len(read_before) >= 16
    assert {reduction for _, reduction in read_before} == ({1, 2} if fast else {1})


@pytest.mark.golden
@pytest.mark.parametrize("name", [*(f"mix{k}" for k in range(6)), "lam0", "lam25"])
def test_mixup_equals_the_reference(tmp_path: Path, golden: Path, name: str) -> None:
    arrays = np.load(golden / "mixup.npz")
    first, second, ratio = 1, 0, {"lam0": 0.0, "lam25": 0.25}.get(name, -1.0)
    if ratio < 0:
        case = json.loads((golden / "mixup_rng.json").read_text())[name]
        first, ratio, second = case["index"], case["lambda"], case["rng_after_beta"][0][3]
    pictures = [arrays[f"image{i}"] for i in range(4)]
    index = write_index(tmp_path, pictures, [arrays[f"label{i}"][:, :5] for i in range(4)])
    image, labels = arrays[f"{name}_image"], arrays[f"{name}_label"]
    size = (image.shape[0], image.shape[1])
    ours = read(index, Draw(first, size, 0, partner=second, ratio=ratio), STILL)
    assert np.abs(ours.image.astype(int) - image).max() <= 1
    np.testing.assert_allclose(ours.boxes, labels[:, :4], atol=1e-5)
    np.testing.assert_array_equal(ours.labels, labels[:, 4])
    np.testing.assert_allclose(ours.weights, labels[:, 6], rtol=1e-6)


@pytest.fixture
def large(tmp_path: Path) -> Index:
    """A JPEG of 128 x 160 and a PNG of 128 x 128, smooth; the index with an object in each."""
    y, x = np.mgrid[0:128, 0:160]
    smooth = np.stack([y, x, 200 - x], -1).astype(np.uint8)
    rows = [[(16.0, 32.0, 80.0, 96.0, label)] for label in (0, 1)]
    index = write_index(tmp_path, [smooth, smooth[::-1, :128]], rows)
    options = {"quality": 100, "subsampling": 0}
    Image.fromarray(smooth).save(index.paths[0], "JPEG", **options)
    return index


def reduced_by_pillow(path: str) -> NDArray[np.float64]:
    with Image.open(path) as image:
        return np.asarray(image.reduce(4)).astype(np.float64)


def test_pictures_that_shrink_are_read_smaller(large: Index) -> None:
    jpeg, png = (reduced_by_pillow(path) for path in large.paths)
    config = replace(STILL, fast_resize=True)
    ours = read(large, Draw(1, (32, 32), 0), config)
    assert np.abs(ours.image - png).max() <= 1
    assert ours.boxes.tolist() == [[4, 8, 20, 24]]
    assert ours.original_size == (128, 128)
    ours = read(large, Draw(0, (32, 40), 0), config)
    assert np.abs(ours.image - jpeg).max() <= 2
    assert ours.rectangle.tolist() == [0, 0, 40, 32]
    both = read(large, Draw(0, (32, 40), 0, partner=1, ratio=0.25), config)
    expected = 0.25 * jpeg
    expected[:, :32] += 0.75 * png
    assert np.abs(both.image - expected).max() <= 2
    assert both.boxes.tolist() == [[4, 8, 20, 24]] * 2
    assert both.labels.tolist() == [0, 1]


def test_a_picture_that_is_read_smaller_must_have_its_size(large: Index) -> None:
    Image.new("RGB", (170, 130)).save(large.paths[0], "JPEG")
    with pytest.raises(UserError, match=r"expected 160x128 pixels .*, found 170x130"):
        read(large, Draw(0, (32, 40), 0), replace(STILL, fast_resize=True))


def test_order_is_kept_and_workers_end(flat: Index) -> None:
    draws = [[Draw(i, (32, 32), 0, augment=False)] for i in (3, 1, 5, 5, 0)]
    loader = make_loader(flat, draws, config=STILL, workers=2)
    first = next(loader)
    assert first.image_ids.tolist() == [3]
    assert len(multiprocessing.active_children()) == 2
    assert [batch.image_ids.item() for batch in loader] == [1, 5, 5, 0]
    assert multiprocessing.active_children() == []


def test_a_loader_that_is_left_early_ends_its_workers(flat: Index) -> None:
    loader = make_loader(flat, [[Draw(1, (32, 32), 0)]] * 50, config=STILL, workers=2)
    next(loader)
    loader.close()
    assert multiprocessing.active_children() == []


def test_the_data_set_survives_a_process_border(index: Index) -> None:
    """Where processes are not forked a worker gets its data set pickled."""
    data_set = DrawDataset(index, SHAPES)
    copy = ForkingPickler.loads(ForkingPickler.dumps(data_set))
    draw = Draw(3, (64, 64), 5, partner=2, ratio=0.3)
    for ours, theirs in zip(copy[draw], data_set[draw], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_global_random_state_is_left_alone(flat: Index) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    batches(flat, STILL, workers=2, epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured by Linux")
def test_random_shapes_do_not_add_up_in_memory(index: Index) -> None:
    config = AugmentConfig(shape_interval=1)  # the ten sizes of the recipe, a new one each step
    plan = Plan(len(index), 4, 40, seed=0, size=416, augment=config)
    resident: list[float] = []
    for batch in make_loader(index, PlanSampler(plan, start=0, stop=90), config=config, workers=0):
        network_input(batch, InputConfig())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    # Measured: it wanders by 40 MiB. The last 60 batches hold 150 MiB, their inputs 600 MiB.
    assert max(resident[30:]) - max(resident[:30]) < 80


# --- bad pictures --------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> str:
    """Damages a file and returns what the error must say about it."""
    if how == "missing":
        path.unlink()
        return "can't be read"
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:60])
        return "not a picture that can be read"
    if how == "empty":
        path.write_bytes(b"")
        return "empty"
    cv2.imwrite(str(path), np.zeros((10, 20, 3), np.uint8))
    return "expected 32x32 pixels as when the data set was opened, found 20x10"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["missing", "cut short", "empty", "another size"])
def test_a_bad_picture_is_one_error_that_names_it(flat: Index, how: str, workers: int) -> None:
    path = Path(flat.paths[4])
    message = spoil(path, how)
    draws = validation_draws(len(flat), 32, batch_size=2)
    loader = make_loader(flat, draws, config=STILL, workers=workers)
    assert [next(loader).image_ids.tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError) as caught:
        next(loader)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_partner_is_named(flat: Index) -> None:
    path = Path(flat.paths[4])
    spoil(path, "missing")
    draws = [[Draw(1, (32, 32), 0, partner=4, ratio=0.5)]]
    with pytest.raises(UserError, match=f"^{path}: "):
        list(make_loader(flat, draws, config=STILL, workers=2))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_tile_is_named_alone(flat: Index, workers: int) -> None:
    path = Path(flat.paths[4])
    spoil(path, "missing")
    draws = [[Draw(1, (32, 32), 0, tiles=(2, 4, 3))]]
    config = replace(STILL, mosaic=1)
    with pytest.raises(UserError, match=f"^{path}: (?!.*mixed)"):
        list(make_loader(flat, draws, config=config, workers=workers))


@pytest.mark.parametrize("bug", [KeyError("no"), cv2.error("no")])
def test_a_tile_that_fails_is_named_alone(
    flat: Index, bug: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sample: Sample, view: View) -> Sample:
        if sample.image_id == 4:
            raise bug
        return apply_view(sample, view)

    monkeypatch.setattr("triscale.data.loader.apply_view", fail)
    draws = [[Draw(1, (32, 32), 0, tiles=(2, 4, 3))]]
    with pytest.raises((UserError, KeyError)) as caught:
        list(make_loader(flat, draws, config=replace(STILL, mosaic=1), workers=0))
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert flat.paths[4] in text
    assert "mixed" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="signals do not say who sent them")
def test_workers_end_at_their_parents_word_only(flat: Index) -> None:
    """Ignoring the parent too would keep a program that fails from ending."""
    loader = make_loader(flat, [[Draw(1, (32, 32), 0)]] * 50, config=STILL, workers=1)
    next(loader)
    [worker] = multiprocessing.active_children()
    for name in ("-INT", "-USR1", "-TERM"):
        subprocess.run(["kill", name, str(worker.pid)], check=True)
    worker.join(1)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


# the thread that feeds the dead worker's queue may complain
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_is_a_clear_error(flat: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    if multiprocessing.get_start_method() != "fork":
        pytest.skip("a worker sees the patched function only if it is forked")

    def die(path: Path, *, reduction: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory runs out

    monkeypatch.setattr("triscale.data.loader.read_picture", die)
    loader = make_loader(flat, [[Draw(1, (32, 32), 0)]], config=STILL, workers=1)
    with pytest.raises(UserError, match=r"a data loading process died .* try fewer --workers"):
        next(loader)


# --- collate -------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize(
    ("case", "arrays", "fill"),  # the inputs: read off the recorded outputs
    [
        ("pad_empty_first", [np.zeros((0, 4)), np.ones((2, 4))], -1),
        ("pad_f32", [np.ones((2, 2), np.float32), np.ones((1, 2), np.float32)], -1),
        ("pad_val", [np.arange(12.0).reshape(3, 4), np.arange(4.0).reshape(1, 4)], -1),
        ("pad_lists", [np.arange(1, 5), np.arange(4, 7), np.array([8, 2])], 0),
        ("pad_tuple_axis", [np.ones((2, 3)), np.ones((3, 1))], -1),
        ("pad_axis1", [np.arange(1, 9).reshape(2, 4), np.array([[5, 8], [1, 2]])], -1),
    ],
)
def test_pad_equals_the_reference(
    golden: Path, case: str, arrays: list[NDArray[Any]], fill: float
) -> None:
    ((shape, dtype, _, values),) = json.loads((golden / "batchify.json").read_text())[case]
    padded = pad(arrays, fill)
    assert list(padded.shape) == shape
    assert padded.dtype == dtype
    np.testing.assert_array_equal(padded, values)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("case", "arrays"),
    [
        ("stack_scalar", [np.array(0), np.array(1)]),
        (
            "stack_np",
            [np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[5, 6, 7, 8], [1, 2, 3, 4]])],
        ),
        ("stack_nd", [np.ones((2, 2)), np.zeros((2, 2))]),
    ],
)
def test_stack_equals_the_reference(golden: Path, case: str, arrays: list[NDArray[Any]]) -> None:
    ((shape, dtype, _, values),) = json.loads((golden / "batchify.json").read_text())[case]
    stacked = stack(arrays)
    assert list(stacked.shape) == shape
    assert stacked.dtype == dtype == "float32"
    np.testing.assert_array_equal(stacked, values)


def test_stack_refuses_different_shapes() -> None:
    with pytest.raises(ValueError, match="same shape"):  # as the reference
        stack([np.zeros(2), np.zeros(3)])


@pytest.mark.parametrize(
    ("rows", "boxes", "labels", "weights"),
    [
        ([[]], [[]], [[]], [[]]),
        ([[], []], [[], []], [[], []], [[], []]),
        (
            [[], [(1, 2, 3, 4, 7)]],
            [[[-1] * 4], [[1, 2, 3, 4]]],
            [[-1], [7]],
            [[0], [1]],
        ),
        (
            [[(1, 2, 3, 4, 7), (0, 0, 9, 9, 0)], [(5, 6, 7, 8, 2)]],
            [[[1, 2, 3, 4], [0, 0, 9, 9]], [[5, 6, 7, 8], [-1] * 4]],
            [[7, 0], [2, -1]],
            [[1, 1], [1, 0]],
        ),
    ],
)
def test_collate(rows: Any, boxes: Any, labels: Any, weights: Any) -> None:
    images = [noise(6, 8, seed=i) for i in range(len(rows))]
    samples = [
        make_sample(image, table)._replace(image_id=9 - i, original_size=(i, 5))
        for i, (image, table) in enumerate(zip(images, rows, strict=True))
    ]
    batch = collate(samples)
    assert batch.images.dtype == torch.uint8
    np.testing.assert_array_equal(batch.images, images)
    for tensor, expected, dtype in (
        (batch.boxes, boxes, torch.float32),
        (batch.labels, labels, torch.int64),
        (batch.weights, weights, torch.float32),
    ):
        assert tensor.dtype == dtype
        assert tensor.tolist() == expected
    assert batch.boxes.shape[2] == 4
    assert batch.image_ids.tolist() == [9 - i for i in range(len(rows))]
    assert batch.original_sizes.tolist() == [[i, 5] for i in range(len(rows))]
    assert batch.colour.shape == (len(rows), 3, 4)
    assert batch.rectangle.tolist() == [[0, 0, 8, 6]] * len(rows)


def test_load(index: Index) -> None:
    sample = load(index, 3)
    height, width = index.sizes[3].tolist()
    assert sample.image.shape == (height, width, 3)
    assert sample.original_size == (height, width)
    assert sample.rectangle.tolist() == [0, 0, width, height]
    np.testing.assert_array_equal(sample.image, noise(height, width, seed=3))
    assert sample.boxes.tolist() == [[3, 2, 25, 21]] * 3
    assert sample.labels.tolist() == [1, 1, 1]
    assert sample.weights.tolist() == [1, 1, 1]
    assert load(index, 0).boxes.shape == (0, 4)
