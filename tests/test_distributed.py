"""Two processes give what one gives: batch norm, gathering, and a whole training run (gloo)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import get_context

from triscale.data.open import open_dataset
from triscale.distributed import (
    Processes,
    SyncBatchNorm,
    choose_device,
    gather_interleaved,
    join_processes,
    sum_gradients,
    sum_tensor,
    synchronise_batch_norm,
)
from triscale.errors import UserError
from triscale.log import Narrator
from triscale.model.yolo import build_model
from triscale.recipe import Recipe
from triscale.training import train
from triscale.weights.native import read_tensors

ROWS = 7  # that 2 processes share: 4 and 3


def network() -> nn.Sequential:
    """A batch norm in the middle, after a mean far from zero; the same numbers in each process."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    with torch.no_grad():
        model[0].bias += 50.0
        model[1].weight.uniform_(0.5, 2)
    return model


def images() -> Tensor:
    return torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(1))


def backward(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient for a loss that no symmetry makes vanish; sums over the batch."""
    x.requires_grad_()
    output = model(x)
    (output.sin().sum() + output.square().sum()).backward()
    assert x.grad is not None
    return output.detach(), x.grad


def work(rank: int, ports: tuple[int, int], folder: Path, devkit: Path, settings: Recipe) -> None:
    """What each of the two processes does; results go to files."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(ports[0]))
    with join_processes(torch.device("cpu")) as processes:
        model = network()
        synchronise_batch_norm(model)
        output, input_gradient = backward(model, images()[rank * 3 : rank * 3 + 3])
        sum_gradients(model, processes)
        mine = torch.arange(rank, ROWS, 2)
        results = {
            "processes": tuple(processes),
            "output": output,
            "input_gradient": input_gradient,
            "gradients": [p.grad for p in model.parameters()],
            "state": model.state_dict(),
            "gathered": gather_interleaved(torch.stack([mine, mine * 10], 1), ROWS, processes),
            "sum": sum_tensor(torch.tensor([1.0, rank]), processes),
        }
        torch.save(results, folder / f"{rank}.pt")
    os.environ["MASTER_PORT"] = str(ports[1])
    data = open_dataset(devkit, settings.data)
    result = train(settings, data, folder / "run", narrator=Narrator(enabled=False))
    (folder / f"{rank}.json").write_text(json.dumps(result.best))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, devkit: Path, tiny_recipe: Callable[..., Recipe]
) -> Path:
    """The results of two processes that have done their work."""
    folder = tmp_path_factory.mktemp("two")
    # Leaky units and a low rate, so that rounding errors do not grow (see test_golden_losses).
    settings = tiny_recipe("train.syncbn=true", "model.backbone=tiny", "optim.lr=0.0001")
    ports = free_port(), free_port()
    context = get_context("spawn")
    pair = [
        context.Process(target=work, args=(rank, ports, folder, devkit, settings))
        for rank in range(2)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in pair] == [0, 0]
    # The same batch norm, in a group of one: PyTorch's own agrees with it to 1e-4 only, which is
    # enough to turn a leaky unit over here and there.
    data = open_dataset(devkit, settings.data)
    generator = torch.Generator().manual_seed(settings.train.seed)
    model = build_model(settings.model, len(data.classes), generator=generator)
    synchronise_batch_norm(model)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1
    )
    train(settings, data, folder / "alone", model=model, narrator=Narrator(enabled=False))
    dist.destroy_process_group()
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, object]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks(results: list[dict[str, object]]) -> None:
    assert [r["processes"] for r in results] == [(0, 2), (1, 2)]


def test_batch_norm_over_processes_is_that_of_the_joined_batch(
    results: list[dict[str, object]],
) -> None:
    """PyTorch's own BatchNorm2d on all six pictures is the oracle."""
    model = network()
    output, input_gradient = backward(model, images())
    close = {"rtol": 1e-4, "atol": 1e-4}
    for rank, found in enumerate(results):
        rows = slice(rank * 3, rank * 3 + 3)
        torch.testing.assert_close(found["output"], output[rows], **close)
        torch.testing.assert_close(found["input_gradient"], input_gradient[rows], **close)
        gradients = [p.grad for p in model.parameters()]
        torch.testing.assert_close(found["gradients"], gradients, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found["state"], dict(model.state_dict()), **close)


def test_gathering_restores_the_order(results: list[dict[str, object]]) -> None:
    expected = torch.stack([torch.arange(ROWS), torch.arange(ROWS) * 10], 1)
    for found in results:
        assert isinstance(found["gathered"], Tensor)
        assert torch.equal(found["gathered"], expected)


def test_sum(results: list[dict[str, object]]) -> None:
    for found in results:
        assert isinstance(found["sum"], Tensor)
        assert found["sum"].tolist() == [2, 1]


def test_training_with_two_processes_is_training_with_one(folder: Path) -> None:
    """Same losses, same weights, same mAP, up to the order of summation."""
    runs = (folder / "run", folder / "alone")
    lines = [[json.loads(x) for x in (r / "log.jsonl").read_text().splitlines()] for r in runs]
    assert len(lines[0]) == len(lines[1]) == 10
    for ours, expected in zip(*lines, strict=True):
        assert (ours["kind"], ours["step"]) == (expected["kind"], expected["step"])
        if ours["kind"] == "train":
            assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        else:
            assert ours["metrics"]["mAP"] == pytest.approx(expected["metrics"]["mAP"], abs=1e-3)
    assert [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)] == [
        pytest.approx(max(x["metrics"]["mAP"] for x in lines[1] if x["kind"] == "eval"), abs=1e-3)
    ] * 2
    newest = "last/step-00000007.safetensors"
    ours_state, expected_state = (read_tensors(run / newest)[0] for run in runs)
    assert ours_state.keys() == expected_state.keys()
    for name, expected_tensor in expected_state.items():
        difference = (ours_state[name] - expected_tensor).double().norm()
        assert difference <= 1e-2 * expected_tensor.double().norm(), name


# --- one process ---------------------------------------------------------------------------------


def test_alone_everything_is_left_as_it_is() -> None:
    with join_processes(torch.device("cpu")) as processes:
        assert processes == Processes(0, 1)
        assert processes.is_main
        x = torch.arange(3.0)
        assert gather_interleaved(x, 3, processes) is x
        assert sum_tensor(x, processes) is x


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
