"""The loop: it learns, it repeats itself to the bit, it goes on where it stopped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.many_processes import untrained
from tests.running import (
    TIMES,
    MakeRecipe,
    assert_same_run,
    losses,
    records,
    run_quietly,
    same_tensors,
)
from triscale.anchors import make_grid
from triscale.average import Average
from triscale.data.loader import make_loader
from triscale.data.open import Data, open_dataset
from triscale.data.pictures import read_picture
from triscale.data.plan import PlanSampler
from triscale.distributed import Processes
from triscale.errors import UserError
from triscale.gradients import Gradients, Statistics
from triscale.guard import Echo
from triscale.log import LOSSES, Narrator
from triscale.model.yolo import build_model
from triscale.optim import parameter_groups
from triscale.predict import find_weights
from triscale.prepare import make_plan, training_index
from triscale.recipe import load_recipe
from triscale.sgd import SGD
from triscale.step import _blank, batch_losses
from triscale.training import train
from triscale.weights.formats import load_weights
from triscale.weights.native import read_tensors

GOLDEN = Path(__file__).parent / "golden_losses.txt"


def test_files_of_a_run(trained: Path, data: Data) -> None:
    assert data.val is not None
    names = {p.name for p in trained.iterdir()}
    weights = {n for n in names if n.startswith("epoch_")}
    assert names - weights == {
        *("recipe.toml", "log.jsonl", "best.safetensors", "best_map.log", "last", "predictions"),
        ".lock",
    }
    scores = {r["epoch"]: r["metrics"]["mAP"] for r in records(trained, "eval")}
    assert sorted(weights) == [f"epoch_{e:04d}_{scores[e]:.4f}.safetensors" for e in (0, 2)]
    pictures = {p.name for p in (trained / "predictions").iterdir()}
    assert pictures == {f"{name}.jpg" for name in data.val.ids}
    assert cv2.imread(str(trained / "predictions" / min(pictures))).shape == (96, 128, 3)


def test_train_records(trained: Path, tiny_recipe: MakeRecipe) -> None:
    lines = records(trained, "train")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 1, 2, 2]  # 10 pictures, batches of 4
    for line in lines:
        assert list(line) == ["kind", "step", "epoch", "lr", "loss", *LOSSES, *TIMES]
        assert line["lr"] == tiny_recipe().optim.lr
        assert line["loss"] == pytest.approx(sum(line[name] for name in LOSSES))
        assert line["images_per_second"] > 0
        assert line["data_seconds"] >= 0


def test_records_are_means_since_the_epoch_began(trained: Path) -> None:
    """Undo the means to the loss of each step; the states on disk hold the sums."""
    states = [json.loads(p.read_text()) for p in sorted((trained / "last").glob("*.json"))]
    by_step = {s["step"]: s for s in states}
    for record in losses(trained):
        state = by_step[record["step"]]
        if state["steps"]:  # the end of an epoch begins a new sum
            assert record["objectness"] == state["losses"][0] / state["steps"]
    assert [s["steps"] for s in states] == [1, 0, 1, 2, 0, 1, 0]


def test_eval_records(trained: Path, data: Data) -> None:
    lines = records(trained, "eval")
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 2), (1, 5), (2, 7)]
    for line in lines:
        assert line["metrics"].keys() == {"mAP", *(f"AP/{name}" for name in data.classes)}
        known = [v for k, v in line["metrics"].items() if k != "mAP" and v is not None]
        assert line["metrics"]["mAP"] == pytest.approx(sum(known) / len(known))


def test_best_map_log(trained: Path) -> None:
    best, expected = -1.0, ""
    for line in records(trained, "eval"):
        if line["metrics"]["mAP"] > best:
            best = line["metrics"]["mAP"]
            expected += f"{line['epoch']:04d}:\t{best:.4f}\n"
    assert (trained / "best_map.log").read_text() == expected


def test_weights_carry_everything(trained: Path, data: Data) -> None:
    info = load_weights(trained / "best.safetensors")[1]
    assert info.classes == data.classes
    assert info.size == 64
    assert info.recipe["train"]["batch_size"] == 4
    stored = load_recipe(trained / "recipe.toml")
    assert stored.model == info.model


# --- the same digits -----------------------------------------------------------------------------


def test_two_runs_are_equal(
    trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """A worker process, no states and no log in between: nothing of it changes a digit."""
    torch.manual_seed(17)  # nor does the global generator
    run_quietly(tiny_recipe("train.workers=1"), data, tmp_path / "run")
    assert_same_run(tmp_path / "run", trained)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_decoded_pictures_that_are_kept_change_nothing(
    data: Data,
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice, the second time with a cache on disk that is already full."""
    monkeypatch.setenv("TRISCALE_CACHE", str(tmp_path / "cache"))
    decoded: list[Path] = []

    def read_counted(path: Path, *, reduction: int = 1) -> NDArray[np.uint8]:
        decoded.append(path)
        return read_picture(path, reduction=reduction)

    monkeypatch.setattr("triscale.data.loader.read_picture", read_counted)
    exact = (
        "train.pictures=0",
        "augment.fast_resize=false",
        'augment.interpolations=["linear", "area"]',
    )
    plain = tmp_path / "plain"
    run_quietly(tiny_recipe(*exact), data, plain)
    without = len(decoded)
    for run in (tmp_path / "first", tmp_path / "second"):
        decoded.clear()
        run_quietly(tiny_recipe(f"data.cache={kind}", *exact), data, run)
        assert_same_run(run, plain)
        assert len(set(decoded)) == len(decoded)  # none twice
        assert len(decoded) < without
    assert bool(decoded) == (kind == "ram")


def test_golden_losses(data: Data, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    """20 steps with everything random switched on, against the series in golden_losses.txt."""
    recipe = tiny_recipe(
        # Leaky units and a low rate: the small MobileNet's ReLUs and constant channels make
        # 2 % of a gradient out of a rounding error, this keeps it below 1e-5 for 20 steps.
        *("model.backbone=tiny", "optim.lr=0.0001"),
        *("train.epochs=8", "train.val_interval=0", "augment.mixup=true"),
        *("augment.mixup_off_epochs=4", "augment.random_shape=true", "augment.shape_min=64"),
        *("augment.shape_max=128", "augment.shape_interval=1", "loss.label_smooth=true"),
        *("schedule.mode=cosine", "schedule.warmup_epochs=1", "schedule.warmup_lr=0.00001"),
        *("augment.fast_resize=false", 'augment.interpolations=["linear", "area"]'),
    )
    run_quietly(recipe, data, tmp_path / "run")
    found = [repr(record["loss"]) for record in losses(tmp_path / "run")]
    capability = torch.backends.cpu.get_cpu_capability()
    machine = f"torch {torch.__version__}, OpenCV {cv2.__version__}, {capability}, 1 thread"
    if "TRISCALE_WRITE_GOLDEN" in os.environ:
        header = (
            "# Mean loss since the epoch began, after each of 20 steps, of the run described in\n"
            "# tests/test_training.py::test_golden_losses. On the machine named below they must\n"
            "# agree to the last digit; elsewhere 1e-4 is enough. After a change that is meant to\n"
            "# change the training, write it anew: TRISCALE_WRITE_GOLDEN=1 pytest <that test>\n"
            f"# machine: {machine}\n"
        )
        GOLDEN.write_text(header + "".join(f"{loss}\n" for loss in found))
    lines = GOLDEN.read_text().splitlines()
    expected = [line for line in lines if not line.startswith("#")]
    assert len(expected) == len(found) == 20
    if f"# machine: {machine}" in lines:
        assert found == expected
    else:
        np.testing.assert_allclose([float(x) for x in found], [float(x) for x in expected], 1e-4)


# --- learning ------------------------------------------------------------------------------------


@pytest.fixture
def rectangles(tmp_path: Path) -> Path:
    """Eight pictures, each with a red rectangle above a green one; the list names each 30 times, so
    that an epoch, with its validation and checkpoint, is 30 steps."""
    root = tmp_path / "rectangles"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        image = np.full((64, 64, 3), 60, np.uint8)
        objects = ""
        for label, bgr in enumerate(((40, 40, 220), (60, 200, 40))):
            w, h = rng.integers(14, 30, 2)
            x, y = rng.integers(0, 64 - w), rng.integers(0, 32 - h + 1) + 32 * label
            image[y : y + h, x : x + w] = bgr
            objects += (
                f"<object><name>{('red', 'green')[label]}</name><bndbox><xmin>{x + 1}</xmin>"
                f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            )
        cv2.imwrite(str(root / "JPEGImages" / f"{number}.png"), image)
        size = "<size><width>64</width><height>64</height></size>"
        (root / "Annotations" / f"{number}.xml").write_text(
            f"<annotation>{size}{objects}</annotation>"
        )
    lists = root / "ImageSets" / "Main"
    names = "".join(f"{number}\n" for number in range(8))
    (lists / "train.txt").write_text(names * 30)
    (lists / "val.txt").write_text(names)
    return root


def test_overfits_eight_pictures(rectangles: Path, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        *("model.backbone=tiny", "train.epochs=3", "train.batch_size=8", "schedule.mode=cosine"),
        *("augment.colour=0.0", "augment.expand=0.0", "augment.crop=false", "augment.flip=0.0"),
    )
    result = run_quietly(recipe, open_dataset(rectangles, recipe.data), tmp_path / "run")
    assert result.best > 0.9


# --- what the settings do ------------------------------------------------------------------------


def test_no_training_split(data: Data, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no training split"):
        run_quietly(tiny_recipe(), data._replace(train=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_start_epoch_and_intervals(data: Data, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The steps before the start are left out, the rate is that of a run from the beginning."""
    recipe = tiny_recipe(
        *("train.epochs=5", "train.start_epoch=2", "train.val_interval=3", "train.log_interval=2"),
        *("train.save_interval=2", "schedule.mode=step", "schedule.decay_epochs=[1, 4]"),
    )
    run = tmp_path / "run"
    result = run_quietly(recipe, data, run)
    lines = records(run, "train")
    assert [line["step"] for line in lines] == [7, 9, 10, 12]  # epochs end after 5, 7, 10, 12
    assert [line["epoch"] for line in lines] == [2, 3, 3, 4]
    assert [round(line["lr"] / recipe.optim.lr, 6) for line in lines] == [0.1, 0.1, 0.1, 0.01]
    assert [line["epoch"] for line in records(run, "eval")] == [3, 4]
    assert result.last is not None
    saved = sorted(p.name for p in run.glob("epoch_*"))
    assert saved == ["epoch_0002.safetensors", f"epoch_0004_{result.last.mean:.4f}.safetensors"]


def test_without_validation(data: Data, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    result = run_quietly(tiny_recipe("train.val_interval=0", "train.epochs=1"), data, tmp_path)
    assert (result.best, result.last) == (-1.0, None)
    assert not (tmp_path / "best.safetensors").exists()
    assert not (tmp_path / "predictions").exists()
    assert find_weights(tmp_path).name == "epoch_0000.safetensors", "a run always leaves weights"


def test_what_does_not_fit_is_refused(
    data: Data, tiny_recipe: MakeRecipe, trained: Path, tmp_path: Path
) -> None:
    generator = torch.Generator()
    wrong = build_model(tiny_recipe().model, 2, generator=generator)
    with pytest.raises(UserError, match=r"with 6 classes, found another one with 2$"):
        train(tiny_recipe(), data, tmp_path, model=wrong, narrator=Narrator(enabled=False))
    recipe = tiny_recipe("model.anchors=[[[1,2]],[[3,4]],[[5,6]]]")
    wrong = build_model(recipe.model, 6, generator=generator)
    with pytest.raises(UserError, match=r"expected the network of the recipe's \[model\] with 6"):
        train(tiny_recipe(), data, tmp_path, model=wrong, narrator=Narrator(enabled=False))
    with pytest.raises(UserError, match="holds a run already"):
        run_quietly(tiny_recipe(), data, trained)
    with pytest.raises(UserError, match="give its network as `model`"):
        run_quietly(tiny_recipe("train.init=x.safetensors"), data, tmp_path)
    with pytest.raises(UserError, match="not before the end, 3"):
        tiny_recipe("train.start_epoch=3")
    with pytest.raises(UserError, match=r"train\.seed: expected less"):
        tiny_recipe(f"train.seed={2**63}")


ADAMW = ("optim.name=adamw", "optim.lr=0.001", "optim.weight_decay=0.05")


@pytest.mark.parametrize("more", [(), ("optim.ema=0.9",), ("optim.ema=0.9", *ADAMW)])
def test_a_disk_without_room_is_told_at_the_start(
    more: tuple[str, ...],
    data: Data,
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is asked for is what the finished run takes, and one state more."""
    asked: list[int] = []
    monkeypatch.setattr("triscale.epoch.require_space", lambda _, needed: asked.append(needed))
    recipe = tiny_recipe("train.save_interval=1", *more)
    run_quietly(recipe, data, tmp_path / "run")
    files = list((tmp_path / "run").rglob("*.safetensors"))
    taken = sum(file.stat().st_size for file in files)
    state, best = (max(f.stat().st_size for f in files if n in f.name) for n in ("step-", "best"))
    assert asked[0] == pytest.approx(taken + state + best, rel=0.05)
    run_quietly(recipe, data, tmp_path / "run", resume=True)
    assert asked[1] < asked[0]


def test_weights_that_are_no_numbers_are_never_saved(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SGD.step

    def poisoned(self: SGD, *, ok: torch.Tensor) -> None:
        step(self, ok=ok)
        self.param_groups[0]["params"][0].data[0] = math.nan

    monkeypatch.setattr(SGD, "step", poisoned)
    with pytest.raises(UserError, match="no longer a finite number"):
        run_quietly(tiny_recipe("checkpoint.every_steps=1"), data, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


# --- a backbone that stands still ----------------------------------------------------------------


def test_a_frozen_backbone(data: Data, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    """To the bit in its epochs, statistics and velocities too, while the head learns; then not."""
    recipe = tiny_recipe("schedule.frozen_epochs=2", "checkpoint.keep=9")
    model = untrained(recipe, data)
    begun = {f"model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    train(recipe, data, tmp_path, model=model, narrator=Narrator(enabled=False))
    assert all(param.requires_grad for param in model.parameters())
    for step, still in ((2, True), (5, True), (7, False)):
        state = read_tensors(tmp_path / "last" / f"step-{step:08d}.safetensors")[0]
        moved = {name for name, tensor in begun.items() if not torch.equal(state[name], tensor)}
        backbone = {name for name in begun if name.startswith("model.backbone.")}
        assert moved >= begun.keys() - backbone
        assert moved & backbone == (set() if still else backbone)
        velocities = [state[name] for name in state if name.startswith("velocity.backbone.")]
        assert any(bool(velocity.any()) for velocity in velocities) != still


def test_a_backbone_at_random_is_not_frozen(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^schedule\.frozen_epochs: a backbone at random has"):
        run_quietly(tiny_recipe("schedule.frozen_epochs=1"), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_schedule_longer_than_the_data_by_num_samples(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """gluoncv: --num-samples sets the length of the schedule's epochs and subsets nothing."""
    recipe = tiny_recipe(
        *("train.epochs=2", "train.val_interval=0", "schedule.mode=step"),
        *("schedule.decay_epochs=[1]", "schedule.num_samples=4"),
    )
    run_quietly(recipe, data, tmp_path)
    rates = [line["lr"] / recipe.optim.lr for line in records(tmp_path, "train")]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.1, 0.1])


def test_a_loss_that_explodes_ends_the_run(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        *("train.epochs=9", "optim.lr=1e8", "schedule.warmup_epochs=2"),
        *("train.log_interval=2", "checkpoint.keep=9"),
    )
    text = r"step 5: .*no longer a finite number, again after going back to step 2.*--set optim\.lr"
    with pytest.raises(UserError, match=text):
        run_quietly(recipe, data, tmp_path / "run")
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        assert math.isfinite(json.loads(line).get("loss", 0.0))
    states = sorted((tmp_path / "run" / "last").glob("*.safetensors"))
    for state in states:
        assert all(t.isfinite().all() for t in read_tensors(state)[0].values())


def test_mixup_is_off_in_the_last_epochs(data: Data, tiny_recipe: MakeRecipe) -> None:
    """As the loop builds it, through a worker process: the weights that the loss will see."""
    recipe = tiny_recipe("augment.mixup=true", "augment.mixup_off_epochs=1")
    index = training_index(recipe, data)
    plan = make_plan(recipe, index, Processes())

    def mixed(workers: int) -> list[bool]:
        sampler = PlanSampler(plan, start=0, stop=plan.steps)
        batches = make_loader(index, sampler, config=recipe.augment, workers=workers)
        return [bool(((b.weights > 0) & (b.weights < 1)).any()) for b in batches]

    assert mixed(0) == mixed(1) == [True] * 5 + [False] * 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(
    precision: str, trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Close to single precision in the first step, and the weights stay in single precision."""
    recipe = tiny_recipe(f"train.precision={precision}", "train.epochs=1")
    run_quietly(recipe, data, tmp_path)
    first, expected = losses(tmp_path)[0], losses(trained)[0]
    assert first["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert first["loss"] != expected["loss"]
    tensors = read_tensors(tmp_path / "best.safetensors")[0]
    assert {t.dtype for t in tensors.values()} == {torch.float32, torch.int64}


# --- compiled, and without waiting ---------------------------------------------------------------


@pytest.fixture
def compile_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """torch.compile with a backend that runs what was traced as it is, and notes each trace."""
    calls: list[Any] = []

    def noting(graph: Any, inputs: list[Any]) -> Any:
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=noting))
    yield calls
    torch.compiler.reset()


def test_a_compiled_run(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, compile_calls: list[Any]
) -> None:
    """The same run to the bit, where the compiler changes nothing; each shape compiled once."""
    words = (
        *("model.backbone=tiny", "optim.lr=0.0001", "train.epochs=1"),
        *("augment.random_shape=true", "augment.shape_min=64", "augment.shape_max=96"),
        *("augment.shape_interval=1", "train.val_interval=0"),
    )
    run_quietly(tiny_recipe(*words), data, tmp_path / "plain")
    assert compile_calls == []
    recipe = tiny_recipe(*words, "train.compile=true")
    run_quietly(recipe, data, tmp_path / "compiled")
    assert losses(tmp_path / "compiled") == losses(tmp_path / "plain")
    files = [find_weights(tmp_path / name) for name in ("compiled", "plain")]
    assert same_tensors(*files)
    index = training_index(recipe, data)
    sides = {make_plan(recipe, index, Processes()).size_of(step) for step in range(2)}
    assert len(compile_calls) == len({(96, 96), *sides})  # the rehearsal is at the largest


def test_a_compiled_run_with_a_frozen_backbone(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, compile_calls: list[Any]
) -> None:
    """Compiled once while it stands still, and once more when it moves."""
    words = (
        *("model.backbone=tiny", "optim.lr=0.0001", "train.epochs=2", "train.val_interval=0"),
        *("schedule.frozen_epochs=1", "optim.ema=0.9"),
    )
    for name in ("plain", "compiled"):
        recipe = tiny_recipe(*words, f"train.compile={'true' if name == 'compiled' else 'false'}")
        model = untrained(recipe, data)
        train(recipe, data, tmp_path / name, model=model, narrator=Narrator(enabled=False))
    assert losses(tmp_path / "compiled") == losses(tmp_path / "plain")
    assert same_tensors(*(find_weights(tmp_path / name) for name in ("compiled", "plain")))
    assert len(compile_calls) == 2


def test_a_compiler_that_fails_is_told(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(graph: Any, inputs: list[Any]) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=failing))
    with pytest.raises(UserError, match=r"^train\.compile: .*no compiler.*train\.compile=false$"):
        run_quietly(tiny_recipe("train.compile=true", "model.backbone=tiny"), data, tmp_path)
    torch.compiler.reset()


class Moves(TorchDispatchMode):
    """Refuses tensors that come from another device: such a copy waits for the device too.

    On the meta device that is all that has to be looked for: a value, or a shape that depends on
    values, can't be had there, and asking for it raises.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            raise RuntimeError(f"{func} from one device to another")
        return result


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(3).to("meta"),
    ],
)
def test_what_waits_is_found(work: Callable[[torch.Tensor], Any]) -> None:
    with Moves(), pytest.raises((RuntimeError, NotImplementedError)):
        work(torch.ones(3, device="meta"))


@pytest.mark.parametrize("nesterov", [False, True])
def test_nothing_in_a_step_waits_for_the_device(
    nesterov: bool, tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole step on a device without memory: there a value can't even be read."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it doesn't know meta
    meta, recipe = torch.device("meta"), tiny_recipe()
    model = build_model(recipe.model, 6, generator=torch.Generator()).to(meta)
    optimizer = SGD(parameter_groups(model, recipe.optim), lr=0.1, nesterov=nesterov)
    gradients, statistics = Gradients(model, notes=len(LOSSES) + 2), Statistics(model)
    average = Average(model, decay=0.9)
    batch = _blank(3, 64, 4).to(meta)
    grid = make_grid(model.anchors, (64, 64), device=meta)
    for repeat in range(2):  # the first time makes constants
        if repeat:  # from numbers on the host, unseen by the mode
            monkeypatch.setattr(torch, "tensor", None)
        with Moves() if repeat else nullcontext():
            gradients.clear()
            statistics.keep()
            for part in batch.split(2):
                losses = batch_losses(model, part, grid, recipe=recipe, global_batch=3)
                losses.total.backward()
                gradients.notes[: len(LOSSES)] += torch.stack(losses).detach()
            gradients.notes[-2].fill_(True)
            ok = gradients.finite()
            gradients.clear_unless(ok)
            statistics.restore_unless(ok)
            optimizer.step(ok=ok)
            average.follow(repeat, ok=ok)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "words",
    [(), ("train.precision=bf16", "train.accumulate=2", "optim.ema=0.9", "optim.nesterov=true")],
)
def test_the_loop_does_not_wait_for_the_gpu(
    words: tuple[str, ...],
    data: Data,
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the clearing of the gradients to the sending of the news, in the loop itself."""
    clear, send = Gradients.clear, Echo.send
    watched: list[int] = []

    def begin(self: Gradients) -> None:
        clear(self)
        if len(watched) >= 2:  # the first steps make constants and pin memory
            torch.cuda.set_sync_debug_mode("error")

    def end(self: Echo, step: int, notes: torch.Tensor, ok: torch.Tensor) -> None:
        send(self, step, notes, ok)
        torch.cuda.set_sync_debug_mode("default")
        watched.append(step)

    monkeypatch.setattr(Gradients, "clear", begin)
    monkeypatch.setattr(Echo, "send", end)
    try:
        run_quietly(tiny_recipe("train.device=cuda", *words), data, tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(watched) == 7


def test_syncbn_alone_changes_nothing(
    trained: Path, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    run_quietly(tiny_recipe("train.syncbn=true"), data, tmp_path / "run")
    assert_same_run(tmp_path / "run", trained)


@pytest.mark.parametrize(
    ("theirs", "what"),
    [
        # a folder that isn't shared: the main process resumes there, another one would start
        ({"resume": True}, r"whether it goes on \(True there, False here\)"),
        # GPUs with unlike memory, for which `choose` finds unlike batches
        (
            {"train.batch_size": 16, "optim.lr": 0.5},
            r"train.batch_size \(16 there, 4 here\); optim.lr \(0.5 there, 0.001 here\)",
        ),
        ({"val": None}, r"the validation data \(none there, 4 pictures here\)"),
    ],
)
def test_processes_must_be_about_to_do_the_same(
    theirs: dict[str, Any],
    what: str,
    data: Data,
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def main(value: dict[str, Any], *args: Any, **named: Any) -> dict[str, Any]:
        shuffled = dict(sorted(value.items(), reverse=True))
        return {key: theirs.get(key, shuffled[key]) for key in shuffled}

    monkeypatch.setattr("triscale.progress.share_value", main)
    message = f"process 0 is about to do another run than the main one: {what}; all must see"
    with pytest.raises(UserError, match=message):
        run_quietly(tiny_recipe("optim.lr=0.001"), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
