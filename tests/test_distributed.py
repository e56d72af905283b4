"""Two and three processes give what one gives: batch norm, gathering, whole runs (gloo).

What is expected comes from one process that knows of no other, and from PyTorch's own batch norm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.launching import free_port, side_by_side
from tests.many_processes import (
    BROKEN,
    SAID,
    STOPPED,
    TOTALS,
    backward,
    images,
    network,
    share,
    untrained,
    work,
)
from tests.running import assert_same_run, losses, records
from triscale.anchors import make_grid
from triscale.data.loader import collate, read
from triscale.data.open import Data
from triscale.distributed import (
    Processes,
    SyncBatchNorm,
    add_up,
    choose_device,
    gather_interleaved,
    join_processes,
    processes_here,
    share_tensors,
    share_value,
    synchronise_batch_norm,
)
from triscale.errors import UserError
from triscale.gradients import Gradients
from triscale.log import LOSSES
from triscale.recipe import Recipe
from triscale.step import batch_losses
from triscale.training import make_plan
from triscale.weights.native import read_tensors

COUNTS = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, devkit: Path, tiny_recipe: Callable[..., Recipe]
) -> Path:
    """The results of the processes that have done their work."""
    folder = tmp_path_factory.mktemp("many")
    settings = tiny_recipe(
        "train.syncbn=true",
        "train.epochs=2",
        "train.pictures=0",
        "evaluate.iou=0.05",
        "model.backbone=tiny",
        "optim.lr=0.0001",  # low, so that rounding errors do not grow
    )
    ports = [free_port() for _ in range(10)]
    assert side_by_side(work, 3, folder, devkit, settings, ports) == [0, 0, 0]
    return folder


@pytest.fixture(params=[(n, r) for n in COUNTS for r in range(n)], ids=str)
def place(request: pytest.FixtureRequest) -> Processes:
    count, rank = request.param
    return Processes(rank, count)


@pytest.fixture
def found(folder: Path, place: Processes) -> dict[str, Any]:
    """What one process of some found."""
    return torch.load(folder / f"{place.world_size}-{place.rank}.pt", weights_only=True)


def test_batch_norm_over_processes_is_that_of_the_joined_batch(
    found: dict[str, Any], place: Processes
) -> None:
    """PyTorch's own BatchNorm2d on all pictures, in float64, is the oracle; shares are uneven."""
    model = network().double()
    output, input_gradient = backward(model, images().double())
    rows, close = share(*place), {"rtol": 1e-5, "atol": 2e-5, "check_dtype": False}
    torch.testing.assert_close(found["output"], output[rows], **close)
    torch.testing.assert_close(found["input_gradient"], input_gradient[rows], **close)
    torch.testing.assert_close(found["state"], dict(model.state_dict()), **close)
    gradients = [p.grad for p in model.parameters()]
    torch.testing.assert_close(found["gradients"], gradients, **close | {"atol": 2e-3})


def test_exchanges(found: dict[str, Any], place: Processes) -> None:
    count = place.world_size
    assert found["notes"].tolist() == [count, sum(range(count))]
    assert found["finite"] == [True, False], "the second time one process has a nan"
    assert found["shared"].tolist() == [5, 5]
    assert found["said"] == SAID
    for gathered, total in zip(found["gathered"], TOTALS, strict=True):
        assert gathered.tolist() == [[i, i * 10] for i in range(total)]


def test_each_process_measures_the_same(found: dict[str, Any], folder: Path) -> None:
    """The detections of one process to the bit, each picture once, and so their mAP."""
    alone = torch.load(folder / "1-0.pt", weights_only=True)
    assert found["mAP"] == alone["mAP"] > 0
    assert len(found["detections"]) == len(alone["detections"]) == 4
    for ours, expected in zip(found["detections"], alone["detections"], strict=True):
        assert len(expected[0])
        assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize(
    ("run", "other", "loss", "weights"),
    [
        ("2", "1-joined", 2e-6, 2e-5),
        ("3", "1-joined", 2e-6, 2e-5),
        ("3-resumed", "1-joined", 2e-6, 2e-5),
        # PyTorch's batch norm rounds otherwise, which turns a leaky unit over here and there.
        ("2", "1", 3e-4, 0.1),
        ("1-resumed", "1", 3e-4, 0.1),
    ],
)
def test_training_on_many_is_training_on_one(
    run: str, other: str, loss: float, weights: float, folder: Path
) -> None:
    """Same losses, weights, velocities and mAP, up to the order of summation."""
    ours, expected = losses(folder / run), losses(folder / other)
    assert [r["step"] for r in ours] == [r["step"] for r in expected] == list(range(1, 6))
    for a, b in zip(ours, expected, strict=True):
        assert {k: a[k] for k in b if k != "kind"} == pytest.approx(
            {k: b[k] for k in b if k != "kind"}, rel=loss
        )
    ours, expected = records(folder / run, "eval"), records(folder / other, "eval")
    for a, b in zip(ours, expected, strict=True):
        assert a["metrics"]["mAP"] == pytest.approx(b["metrics"]["mAP"], rel=1e-3) != 0
    newest = "last/step-00000005.safetensors"
    ours_state, expected_state = (read_tensors(folder / n / newest)[0] for n in (run, other))
    assert ours_state.keys() == expected_state.keys()
    for name, tensor in expected_state.items():
        difference = (ours_state[name] - tensor).double().norm()
        assert difference <= weights * tensor.double().norm(), name


def test_as_many_parts_in_each_process(folder: Path) -> None:
    """The batch norms meet in each part, so a share of one picture allows no second one."""
    assert losses(folder / "3-parts") == losses(folder / "3")[:2]


def test_going_on_in_the_middle_of_an_epoch_is_exact(folder: Path) -> None:
    assert_same_run(folder / "2-resumed", folder / "2")


def test_all_stop_when_one_is_asked_to(folder: Path) -> None:
    """After the same step, and not before everything is saved: a launcher ends the others."""
    run = folder / "2-stopped"
    expected = (
        f"stopped after step {STOPPED + 1}; go on with: triscale train --resume {run} (saved)"
    )
    # one speaks for all
    assert [(folder / f"stopped-{rank}").read_text() for rank in range(2)] == [expected, " (saved)"]


def test_all_go_back_when_one_has_no_numbers(folder: Path) -> None:
    """Three steps are skipped, all return to the last state, and end as if nothing had been."""
    written = sorted(path.stem for path in (folder / "2-broken" / "skipped").iterdir())
    assert written == [f"step-{step + 1:08d}" for step in BROKEN]
    assert_same_run(folder / "2-broken", folder / "2")


# --- one process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 9])
def test_parts_of_a_batch_add_up_to_its_gradient(
    parts: int, data: Data, tiny_recipe: Callable[..., Recipe]
) -> None:
    """Where the batch norms use what they have learnt; in training each part has its own mean."""
    settings = tiny_recipe(f"train.accumulate={parts}")
    plan = make_plan(settings, data.train, Processes())
    batch = collate([read(data.train, draw, settings.augment) for draw in plan.draws(0)])
    model = untrained(settings, data).eval()
    grid = make_grid(model.anchors, plan.size_of(0))
    found: list[list[Tensor]] = []
    for count in (1, parts):
        gradients = Gradients(model, notes=len(LOSSES))
        for part in batch.split(count):
            terms = batch_losses(model, part, grid, recipe=settings, global_batch=4)
            terms.total.backward()
            gradients.notes += torch.stack(terms).detach()
        found.append([gradients.notes, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_alone_everything_is_left_as_it_is() -> None:
    with join_processes(torch.device("cpu")) as processes:
        assert processes == Processes(0, 1)
        assert processes.is_main
        x = torch.arange(3.0)
        assert gather_interleaved(x, 3, processes) is x
        add_up(x, processes)
        share_tensors([x], processes)
        assert x.tolist() == [0, 1, 2]
        assert share_value(SAID, processes, device=torch.device("cpu")) is SAID


def test_synchronising_shares_parameters_and_statistics() -> None:
    model = network().eval()
    expected, norm = model(images()), model[1]
    state = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    synchronise_batch_norm(model)
    assert type(model[1]) is SyncBatchNorm
    assert model[1].momentum == norm.momentum
    assert not model[1].training
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == state
    assert torch.equal(model(images()), expected)


@pytest.mark.parametrize("name", ["", "gpu", "meta", "cuda:x", "cpu,cuda"])
def test_unknown_device(name: str) -> None:
    with pytest.raises(UserError, match="expected cpu, cuda, cuda:N or auto"):
        choose_device(name)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(UserError, match="asks for GPU 2, there are 2"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("said", "text"),
    [("2", "but RANK and MASTER_ADDR and MASTER_PORT isn't set"), ("many", "asks for several")],
)
def test_an_environment_that_is_half_set(
    said: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", said)
    with pytest.raises(UserError, match=text), join_processes(torch.device("cpu")):
        pass


@pytest.mark.parametrize(
    ("local", "world", "expected"),
    # with neither it is one; a launcher that doesn't say how many are here: all, to be safe
    [(None, None, 1), ("2", "8", 2), (None, "8", 8), ("", "", 1), ("x", "8", 1), ("0", "8", 1)],
)
def test_processes_here(
    local: str | None, world: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCAL_WORLD_SIZE", local), ("WORLD_SIZE", world)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert processes_here() == expected
