"""What is chosen for a data set: rules at their corners, real sets, memory as it was measured."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from triscale import choosing
from triscale.anchors import TINY_ANCHORS
from triscale.choosing import (
    Machine,
    bytes_per_picture,
    choose,
    look_at_machine,
)
from triscale.data.index import Index, PackedStrings
from triscale.data.open import Data, open_dataset
from triscale.errors import UserError
from triscale.kmeans import fit_of, flat
from triscale.lengths import with_key
from triscale.model.yolo import ModelConfig, build_model
from triscale.recipe import Recipe, load_recipe

CPU = Machine(torch.device("cpu"), 2)
GPU = Machine(torch.device("cuda", 0), 16, 70 << 30, "a GPU")


def made(
    pictures: int, sides: list[float], *, picture: int = 640, labels: list[int] | None = None
) -> Data:
    """A set of square pictures with a square object each, of these sides in turn."""
    lengths = np.resize(np.array(sides, np.float32), pictures) if sides else np.zeros(0, np.float32)
    index = Index(
        name="made",
        classes=("a", "b"),
        paths=PackedStrings(map(str, range(pictures))),
        ids=PackedStrings(map(str, range(pictures))),
        sizes=np.full((pictures, 2), picture, np.int32),
        offsets=np.minimum(np.arange(pictures + 1), len(lengths)),
        boxes=np.stack([0 * lengths, 0 * lengths, lengths, lengths], 1),
        labels=np.resize(labels or [0], len(lengths)).astype(np.int32),
        difficult=np.zeros(len(lengths), np.bool_),
        crowd=np.zeros(len(lengths), np.bool_),
        areas=lengths**2,
    )
    return Data("voc", Path("made"), ("a", "b"), index, index, ())


def chosen(data: Data, *overrides: str, machine: Machine = CPU, recipe: str = "small") -> Recipe:
    return choose(load_recipe(recipe, overrides=overrides), data, machine=machine)[0]


@pytest.mark.parametrize(
    ("sides", "labels", "picture", "machine", "size"),
    [
        ([], None, 640, CPU, 320),  # no object: the recipe's
        ([320], None, 640, CPU, 224),  # large ones
        ([40], None, 640, CPU, 256),  # 16 px where the side is 256
        ([39], None, 640, CPU, 288),
        ([25], None, 640, CPU, 416),  # 16 px at 416: as much as a CPU is given
        ([10], None, 640, CPU, 416),
        ([10], None, 640, GPU, 640),
        ([10], None, 300, GPU, 320),  # the pictures' own size, rounded up
        ([10], None, 64, GPU, 224),
        ([10] + [320] * 199, None, 640, GPU, 224),  # one in 200 is below one in 100
        ([10] + [320] * 199, [1] + [0] * 199, 640, GPU, 640),  # but all of a class
    ],
)
def test_size(
    sides: list[float], labels: list[int] | None, picture: int, machine: Machine, size: int
) -> None:
    data = made(200, sides, picture=picture, labels=labels)
    assert chosen(data, machine=machine).train.size == size


def test_random_shapes_move_with_the_size() -> None:
    recipe = chosen(made(200, [320]), "augment.random_shape=true", "train.batch_size=4")
    assert recipe.train.size == 224  # 0.7 of 320
    assert (recipe.augment.shape_min, recipe.augment.shape_max) == (224, 416)


@pytest.mark.parametrize(
    ("pictures", "machine", "batch", "rate"),
    [
        (1, CPU, 1, 0.0005),  # the recipe has 0.004 for batches of 8
        (10, CPU, 2, 0.001),
        (31, CPU, 4, 0.002),
        (32, CPU, 8, 0.004),
        (100_000, CPU, 8, 0.004),
        (32, GPU, 8, 0.004),
        (292, GPU, 16, 0.004),  # no more than what was measured
        (1024, GPU, 64, 0.004),
        (100_000, GPU, 64, 0.004),
        (292, CPU._replace(memory=1 << 28), 2, 0.001),  # 54 MiB each, in half of 256
        (292, CPU._replace(memory=0), 1, 0.0005),
        (1024, GPU._replace(processes=80), 80, 0.004),
    ],
)
def test_batch_and_rate(pictures: int, machine: Machine, batch: int, rate: float) -> None:
    recipe = chosen(made(pictures, [40.0]), "train.size=320", machine=machine)
    assert (recipe.train.batch_size, recipe.optim.lr) == (batch, rate)


@pytest.mark.parametrize(
    ("batch", "rate"),
    [(2, 0.002), (7, 0.0038), (8, 0.00401), (9, 0.00401), (64, 0.00401)],  # below 8 by the root
)
def test_rate_of_adamw(batch: int, rate: float) -> None:
    words = ['optim.name="adamw"', "optim.lr=0.00401", "optim.weight_decay=0.05"]
    base = load_recipe("small", overrides=words)
    wanted = with_key(base, "train.batch_size", batch)
    data = made(200, [320])
    recipe, _ = choose(wanted, data, machine=CPU, given={"train.batch_size"}, base=base)
    assert recipe.optim.lr == rate


def test_rate_and_shapes_follow_what_is_given() -> None:
    """To the batch size and the size that a user wants belong the others' keys."""
    base = load_recipe("small", overrides=["augment.random_shape=true"])
    words = ["train.batch_size=4", "train.size=640"]
    wanted = load_recipe("small", overrides=["augment.random_shape=true", *words])
    given = {word.split("=")[0] for word in words}
    recipe, _ = choose(wanted, made(200, [320]), machine=CPU, given=given, base=base)
    assert (recipe.train.batch_size, recipe.optim.lr) == (4, 0.002)
    assert (recipe.augment.shape_min, recipe.augment.shape_max) == (640, 1216)


@pytest.mark.parametrize(
    ("recipe", "overrides", "batch", "rate", "reason"),
    [
        ("modern", [], 8, 0.003, "the recipe's, for batches of 8; --set"),
        ("modern", ["model.backbone=darknet53"], 8, 0.003, "the recipe's, for batches of 8; --set"),
        ("modern", ["model.backbone=mobilenet0.25"], 8, 0.01, "that of mobilenet0.25, for batches"),
        ("modern", ["model.backbone=mobilenet0.25"], 2, 0.005, "that of mobilenet0.25 is 0.01 for"),
        # trained weights want to be left where they are, and SGD's rate says nothing of AdamW's
        ("finetune", ["model.backbone=mobilenet0.25", "train.init=x"], 8, 0.001, "the recipe's"),
        ("small", ["model.backbone=mobilenet0.25"], 8, 0.004, "the recipe's, for batches of 8; --"),
    ],
)
def test_rate_of_a_network(
    recipe: str, overrides: list[str], batch: int, rate: float, reason: str
) -> None:
    words = [*overrides, f"train.batch_size={batch}"]
    given = {"train.batch_size"}
    wanted, base = load_recipe(recipe, overrides=words), load_recipe(recipe)
    found, lines = choose(wanted, made(200, [320]), machine=CPU, given=given, base=base)
    assert found.optim.lr == rate
    (line,) = [line for line in lines if line.startswith("optim.lr=")]
    assert line.startswith(f"optim.lr={rate} ({reason}")
    mine = with_key(wanted, "optim.lr", 0.7)
    found, _ = choose(mine, made(200, [320]), machine=CPU, given={*given, "optim.lr"}, base=base)
    assert found.optim.lr == 0.7


def test_lengths_follow_the_epochs_that_are_given() -> None:
    """`--epochs 5 --set augment.mosaic=0.5`: of 20 epochs the last 10 have none."""
    words = ["train.epochs=5", "augment.mosaic=0.5"]
    base, wanted = load_recipe("modern"), load_recipe("modern", overrides=words)
    for given, lengths in (
        ({"train.epochs", "augment.mosaic"}, (1, 2)),
        ({"train.epochs", "augment.mosaic_off_epochs"}, (1, 10)),
    ):
        recipe, _ = choose(wanted, made(200, [320]), machine=CPU, given=given, base=base)
        assert recipe.train.epochs == 5
        assert (recipe.schedule.warmup_epochs, recipe.augment.mosaic_off_epochs) == lengths


def test_epochs_fall_and_steps_grow() -> None:
    """For a few hundred pictures 1,500 to 3,000 steps; never below 12 epochs."""
    for machine, recipe in ((CPU, "small"), (GPU, "small"), (CPU, "finetune")):
        before, epochs_before = 0, 10**9
        for pictures in (10, 50, 100, 200, 292, 400, 1000, 4000, 17000, 118000):
            init = ["train.init=x"] if recipe == "finetune" else []
            train = chosen(made(pictures, [320]), *init, machine=machine, recipe=recipe).train
            steps = train.epochs * pictures // train.batch_size
            assert 12 <= train.epochs <= 300
            assert steps > before - 15, "but for the rounding to whole epochs"
            if pictures in (200, 292, 400) and not init:
                assert 1500 <= steps <= 3000
            if machine is CPU and pictures >= 50:
                assert train.epochs <= epochs_before
                epochs_before = train.epochs
            before = steps
        assert train.epochs < 30
    assert chosen(made(292, [320])).train.epochs == 60


@pytest.mark.parametrize(
    ("pictures", "machine", "told"),
    [(292, CPU, False), (13_000, CPU, False), (14_000, CPU, True), (118_000, GPU, False)],
)
def test_a_long_run_on_a_cpu_is_told(pictures: int, machine: Machine, told: bool) -> None:
    """12 epochs of 13,000 pictures are 19,500 batches of 8."""
    _, lines = choose(load_recipe("small"), made(pictures, [320]), machine=machine)
    (line,) = [line for line in lines if line.startswith("train.epochs=")]
    assert ("--minutes N trains for a time" in line) == told


def test_anchors_are_made_where_recall_is_poor() -> None:
    wide = made(3000, [320])
    assert wide.train
    boxes = np.random.default_rng(0).uniform(2, 6, (3000, 4)).astype(np.float32)
    boxes[:, :2] = 0
    boxes[:, 2] *= 100  # fifty times as wide as high
    wide = wide._replace(train=dataclasses.replace(wide.train, boxes=boxes))
    recipe, lines = choose(load_recipe("small"), wide, machine=CPU)
    (line,) = [line for line in lines if line.startswith("model.anchors=[[[")]
    assert "0% and " in line
    shapes = boxes[:, 2:].astype(np.float64) * recipe.train.size / 640
    assert fit_of(shapes, flat(recipe.model.anchors))[0] > 0.9
    build_model(recipe.model, 2, generator=torch.Generator())
    assert chosen(wide) == recipe, "the same each time"
    for key in ("model.anchors=[]", 'train.init="x"'):
        kept = load_recipe("small", overrides=[key])
        new, _ = choose(kept, wide, machine=CPU, given={key.split("=")[0]})
        assert new.model.anchors == ()
    assert chosen(made(500, [3])).model.anchors == (), "too few boxes"
    boxes[:] = [0, 0, 600, 12]
    recipe, lines = choose(load_recipe("small"), wide, machine=CPU)
    assert recipe.model.anchors == (), "six equal ones"
    assert any("0% of the boxes overlap one by half; k-means finds fewer" in line for line in lines)


def test_what_was_given_stays(data: Data) -> None:
    words = ["train.size=96", "train.epochs=7", "optim.lr=0.1", "train.workers=3"]
    given = {word.split("=")[0] for word in words}
    recipe, lines = choose(load_recipe("small", overrides=words), data, machine=GPU, given=given)
    assert (recipe.train.size, recipe.train.epochs, recipe.optim.lr) == (96, 7, 0.1)
    assert recipe.train.workers == 3
    assert recipe.schedule == load_recipe("small").schedule
    assert not given & {line.partition("=")[0] for line in lines}


def test_every_line_says_how_to_choose_otherwise(data: Data) -> None:
    """And what it says is what the recipe has."""
    recipe, lines = choose(load_recipe("small"), data, machine=GPU)
    assert len(lines) >= 8
    for line in lines:
        found = re.fullmatch(r"(\w+)\.(\w+)=(\S+) \(.*; (--[a-z-]+).*\)", line)
        assert found, line
        value = getattr(getattr(recipe, found[1]), found[2])
        assert load_recipe("small", overrides=[line.split(" (")[0]]), line
        assert str(value) == found[3], line


def test_no_validation_split(data: Data) -> None:
    _, lines = choose(load_recipe("small"), data._replace(val=None), machine=CPU)
    assert lines[-1].startswith("no validation split")
    with pytest.raises(UserError, match="there is no training split"):
        choose(load_recipe("small"), data._replace(train=None), machine=CPU)


@pytest.mark.parametrize(
    ("backbone", "megabytes"),
    # docs/benchmarks.md, "MB a picture" at 608 in fp32: ours, and a plain implementation in torch
    [("darknet53", (791, 952)), ("mobilenet1.0", (413, 450)), ("mobilenet0.25", (216, 228))],
)
def test_memory_of_a_picture(backbone: str, megabytes: tuple[int, int]) -> None:
    found = bytes_per_picture(ModelConfig(backbone=backbone), 20, 608) / 1e6
    least, most = megabytes
    assert 0.7 * least < found < most
    assert found * choosing.OVERHEAD > least


def test_memory_grows_with_the_area() -> None:
    small, large = (bytes_per_picture(ModelConfig(backbone="tiny"), 3, s) for s in (128, 512))
    assert large == pytest.approx(16 * small, rel=0.05)


def test_this_machine(data: Data) -> None:
    machine = look_at_machine("cpu")
    recipe = load_recipe("small", overrides=["train.device=cpu"])
    assert choose(recipe, data) == choose(recipe, data, machine=machine)
    assert machine.cores >= 1
    assert machine.memory is None or machine.memory > 0
    with pytest.raises(UserError, match="device: expected cpu"):
        look_at_machine("tpu")


def test_processes_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory is another in each of them, so it isn't asked."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    alone = len(choosing.os.sched_getaffinity(0))
    assert look_at_machine("cpu") == Machine(
        torch.device("cpu"), max(1, alone // 2), None, processes=4
    )


def test_real_sets(shared: Path) -> None:
    """The usual anchors find nearly all of BCCD's cells, but not of VOC's objects; see
    docs/recipes.md."""
    expected = {"bccd": (320, 60, True), "voc2007-400": (416, 16, False)}
    for name, (size, epochs, usual) in expected.items():
        recipe = load_recipe("small", overrides=["data.skip_bad=true"])
        data = open_dataset(shared / "data" / name, recipe.data)
        found, _ = choose(recipe, data, machine=CPU)
        assert (found.train.size, found.train.epochs) == (size, epochs)
        assert (found.model.anchors == ()) == usual
        assert len(found.model.anchors) in (0, len(TINY_ANCHORS))
