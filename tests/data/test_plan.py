"""The plan: rollover like the reference, and every random decision a function of the step."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from triscale.data.augment import AugmentConfig
from triscale.data.plan import Plan, PlanSampler, generator, subset, validation_draws
from triscale.types import Draw

PLAIN = AugmentConfig(random_shape=False)
MIXUP = AugmentConfig(random_shape=False, mixup=True, mixup_off_epochs=2)
MOSAIC = AugmentConfig(random_shape=False, mosaic=1.0, mosaic_off_epochs=1)
PLAN = Plan(num_images=23, batch_size=4, epochs=4, seed=5, size=96, augment=PLAIN)
SIZES = list(range(320, 609, 32))  # the reference's ten


def all_draws(plan: Plan) -> list[Draw]:
    return [draw for step in range(plan.steps) for draw in plan.draws(step)]


@pytest.fixture
def unshuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.arange(num_images)

    monkeypatch.setattr("triscale.data.plan._order", in_order)


@pytest.mark.golden
@pytest.mark.parametrize("shuffle", [False, True])
def test_epochs_have_the_reference_number_of_batches(golden: Path, shuffle: bool) -> None:
    run = json.loads((golden / "random_transform_loader.json").read_text())[shuffle]
    assert run["shuffle"] == shuffle
    plan = replace(PLAN, num_images=run["n"], batch_size=run["batch"], epochs=len(run["epochs"]))
    lengths = [plan.first_step(e + 1) - plan.first_step(e) for e in range(plan.epochs)]
    assert lengths == [epoch["len_before"] for epoch in run["epochs"]]


@pytest.mark.golden
@pytest.mark.usefixtures("unshuffled")
def test_rollover_gives_the_reference_order(golden: Path) -> None:
    run = json.loads((golden / "random_transform_loader.json").read_text())[0]
    plan = replace(PLAN, num_images=run["n"], batch_size=run["batch"], epochs=len(run["epochs"]))
    theirs = [batch for epoch in run["epochs"] for batch, _ in epoch["batches"]]
    assert [[d.index for d in plan.draws(s)] for s in range(plan.steps)] == theirs


@pytest.mark.golden
def test_a_size_lasts_as_long_as_the_reference_transform(golden: Path) -> None:
    run = json.loads((golden / "random_transform_loader.json").read_text())[0]
    interval = run["interval"]
    shapes = AugmentConfig(shape_interval=interval)
    plan = replace(PLAN, num_images=run["n"], epochs=len(run["epochs"]), augment=shapes)
    for number, epoch in enumerate(run["epochs"]):
        steps = range(plan.first_step(number), plan.first_step(number + 1))
        ours = [plan.size_of(step) for step in steps]
        theirs = [transform for _, transform in epoch["batches"]]
        for values in (ours, theirs):  # the count restarts with the epoch in both
            assert values == [values[i - i % interval] for i in range(len(values))]


@pytest.mark.parametrize(("num_images", "batch_size"), [(1, 1), (7, 3), (23, 4), (3, 8), (16, 4)])
def test_every_picture_is_seen_once_per_epoch(num_images: int, batch_size: int) -> None:
    plan = replace(PLAN, num_images=num_images, batch_size=batch_size, epochs=24)
    seen = np.array([draw.index for draw in all_draws(plan)])
    whole = len(seen) // num_images
    assert whole >= 23
    epochs = seen[: whole * num_images].reshape(whole, num_images)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(num_images), (whole, 1)))
    if num_images > 5:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == whole  # each in its own order


@settings(deadline=None)
@given(
    num_images=st.integers(1, 300),
    batch_size=st.integers(1, 200),
    epoch=st.integers(0, 40),
    step=st.integers(0, 5000),
)
def test_epoch_of_and_first_step_are_inverse(
    num_images: int, batch_size: int, epoch: int, step: int
) -> None:
    plan = replace(PLAN, num_images=num_images, batch_size=batch_size)
    # For all epochs and steps: an epoch has begun by a step if and only if it is not a later one.
    assert (plan.first_step(epoch) <= step) == (epoch <= plan.epoch_of(step))
    first = plan.first_step(epoch)
    if first < plan.first_step(epoch + 1):  # an epoch smaller than a batch may have no step
        assert plan.epoch_of(first) == epoch
    # The step holds the first picture of the epoch that it belongs to, or a later one.
    assert plan.epoch_of(step) * num_images < (step + 1) * batch_size


def test_no_epochs_no_steps() -> None:
    assert replace(PLAN, epochs=0).steps == 0


def test_resume_gives_the_same_draws() -> None:
    shapes = replace(MIXUP, random_shape=True, shape_interval=3, mosaic=0.5, mosaic_off_epochs=1)
    plan = replace(PLAN, augment=shapes)
    whole = list(PlanSampler(plan, start=0, stop=plan.steps))
    for start in range(plan.steps + 1):
        rest = PlanSampler(replace(plan), start=start, stop=plan.steps)
        assert len(rest) == plan.steps - start
        assert list(rest) == whole[start:]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shards_join_to_the_global_batch(world_size: int) -> None:
    plan = replace(PLAN, batch_size=8, augment=MIXUP)
    shards = [
        list(PlanSampler(plan, start=2, stop=plan.steps, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for step, parts in zip(range(2, plan.steps), zip(*shards, strict=True), strict=True):
        assert [draw for part in parts for draw in part] == plan.draws(step)
        assert {len(part) for part in parts} == {8 // world_size}


def test_seeds_decide_and_samples_are_independent() -> None:
    plan = replace(PLAN, augment=replace(MIXUP, random_shape=True))
    draws = all_draws(plan)
    assert draws == all_draws(replace(plan))
    assert len({draw.seed for draw in draws}) == len(draws)
    for other in (all_draws(replace(plan, seed=s)) for s in (0, 6, 2**63)):
        same = [a.index == b.index for a, b in zip(draws, other, strict=True)]
        assert np.mean(same) < 0.2  # 1 in 23 by chance
        assert not {draw.seed for draw in draws} & {draw.seed for draw in other}


def test_random_streams_differ_by_each_word() -> None:
    words = list(itertools.product((0, 1, 233), range(6), (0, 1, 2, 2**40)))
    assert len({float(generator(*w).random()) for w in words}) == len(words)
    assert generator(3, 4).random() == generator(3, 4).random()


def test_random_sizes() -> None:
    plan = replace(PLAN, num_images=1000, batch_size=1, epochs=6, augment=AugmentConfig())
    sides = np.array([plan.size_of(step) for step in range(plan.steps)])
    assert (sides[:, 0] == sides[:, 1]).all()
    blocks = sides[:, 0].reshape(-1, 10)
    assert (blocks == blocks[:, :1]).all()
    values, counts = np.unique(blocks[:, 0], return_counts=True)
    assert values.tolist() == SIZES
    # 600 blocks: 60 per size, standard deviation 7.3
    assert counts.min() > 60 - 30
    assert counts.max() < 60 + 30
    assert np.mean(blocks[1:, 0] != blocks[:-1, 0]) > 0.8  # 0.9 expected


def test_fixed_size() -> None:
    assert {draw.size for draw in all_draws(PLAN)} == {(96, 96)}


def test_mixup_draws() -> None:
    plan = replace(PLAN, num_images=5, batch_size=8, epochs=4000, augment=MIXUP)
    mixed = all_draws(replace(plan, augment=replace(MIXUP, mixup_off_epochs=0)))
    assert all(d.partner is not None and d.partner != d.index for d in mixed)
    pairs = [(d.index, d.partner) for d in mixed]
    counts = [pairs.count((a, b)) for a in range(5) for b in range(5) if a != b]
    assert sum(counts) == len(mixed) == 20_000  # 1000 per pair, standard deviation 31
    assert min(counts) > 850
    assert max(counts) < 1150
    ratios = np.array([d.ratio for d in mixed])
    assert ratios.min() > 0
    assert ratios.max() < 1
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)); about four standard errors
    assert abs(ratios.mean() - 0.5) < 0.007
    assert abs(ratios.var() - 1 / 16) < 0.002


def test_mixup_ends_before_the_last_epochs() -> None:
    plan = replace(PLAN, augment=MIXUP)
    for step in range(plan.steps):
        mixed = [draw.partner is not None for draw in plan.draws(step)]
        assert mixed == [plan.epoch_of(step) < 2] * 4
    plain = all_draws(replace(plan, augment=PLAIN))  # mixup changes nothing else
    assert [d._replace(partner=None, ratio=1.0) for d in all_draws(plan)] == plain


def test_a_single_picture_has_no_partner() -> None:
    plan = replace(PLAN, num_images=1, epochs=40, augment=MIXUP)
    assert {draw.partner for draw in all_draws(plan)} == {None}


def test_mosaics_end_before_the_last_epochs() -> None:
    plan = replace(PLAN, augment=MOSAIC)
    for step in range(plan.steps):
        tiles = [len(draw.tiles) for draw in plan.draws(step)]
        assert tiles == [3 * (plan.epoch_of(step) < 3)] * 4
    plain = all_draws(replace(plan, augment=PLAIN))  # mosaics change nothing else
    assert [draw._replace(tiles=()) for draw in all_draws(plan)] == plain
    longer = replace(plan, augment=replace(MOSAIC, mosaic_off_epochs=4))
    assert all_draws(longer) == plain


def test_a_mosaic_is_not_mixed() -> None:
    mixup = replace(MIXUP, mixup_off_epochs=0)
    both = replace(mixup, mosaic=0.3, mosaic_off_epochs=2)
    plan = replace(PLAN, num_images=1000, augment=both)
    mixed = all_draws(replace(plan, augment=mixup))
    tiled = 0
    for draw, expected in zip(all_draws(plan), mixed, strict=True):
        tiled += bool(draw.tiles)
        if draw.tiles:
            assert draw == expected._replace(partner=None, ratio=1.0, tiles=draw.tiles)
        else:
            assert draw == expected
    assert abs(tiled / 2000 - 0.3) < 0.05  # of the first two epochs; five standard errors


@pytest.mark.parametrize("num_images", [1, 2, 3, 16, 50])
def test_tiles_are_neighbours_in_the_run(num_images: int) -> None:
    plan = replace(PLAN, num_images=num_images, epochs=400 // num_images, augment=MOSAIC)
    draws = all_draws(plan)[: 300 // 16 * 16]
    if num_images == 1:
        assert not any(draw.tiles for draw in draws)
        return
    order = np.array([draw.index for draw in all_draws(plan)])
    for position, draw in enumerate(draws):
        start = position // 16 * 16
        assert set(draw.tiles) <= set(order[start : start + 16].tolist())
        if start // num_images == (start + 15) // num_images:  # no border of epochs
            assert len({draw.index, *draw.tiles}) == 4


def test_each_neighbour_is_as_likely() -> None:
    plan = replace(PLAN, num_images=16, batch_size=16, epochs=1000, augment=MOSAIC)
    counts = np.zeros((3, 16, 16), int)
    for step in range(990):
        draws = plan.draws(step)
        place = {draw.index: p for p, draw in enumerate(draws)}
        for own, draw in enumerate(draws):
            for tile, other in enumerate(draw.tiles):
                counts[tile, own, place[other]] += 1
    others = counts[:, ~np.eye(16, dtype=bool)]
    assert others.sum() == counts.sum() == 3 * 16 * 990
    # 66 each, standard deviation 7.8
    assert others.min() > 66 - 40
    assert others.max() < 66 + 40


@pytest.mark.parametrize(
    ("num_images", "num_samples", "expected"), [(0, 0, 0), (9, 0, 9), (9, 4, 4), (9, 50, 9)]
)
def test_subset(num_images: int, num_samples: int, expected: int) -> None:
    chosen = subset(num_images, num_samples, 3).tolist()
    assert len(chosen) == expected
    assert chosen == sorted(set(chosen) & set(range(num_images)))
    assert chosen == subset(num_images, num_samples, 3).tolist()


def test_subset_grows_with_its_number_and_follows_the_seed() -> None:
    assert set(subset(1000, 10, 3)) < set(subset(1000, 20, 3))
    assert set(subset(1000, 10, 3)) != set(subset(1000, 10, 4))


@pytest.mark.parametrize(
    ("num_images", "world_size", "expected"),
    [
        (0, 1, [[]]),
        (5, 1, [[[0, 1], [2, 3], [4]]]),
        (5, 2, [[[0, 2], [4]], [[1, 3]]]),
        (1, 2, [[[0]], []]),
    ],
)
def test_validation_draws(
    num_images: int, world_size: int, expected: list[list[list[int]]]
) -> None:
    shards = [
        validation_draws(num_images, 64, batch_size=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert [[[draw.index for draw in batch] for batch in shard] for shard in shards] == expected
    draws = [draw for shard in shards for batch in shard for draw in batch]
    assert all(d.size == (64, 64) and not d.augment and d.partner is None for d in draws)
