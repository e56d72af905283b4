"""What the processes of test_distributed.py do: exchanges, and whole runs; results go to files."""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.launching import join
from tests.running import run_quietly
from triscale import training
from triscale.data.open import Data, open_dataset
from triscale.distributed import (
    Processes,
    gather_interleaved,
    join_processes,
    share_tensors,
    share_value,
    synchronise_batch_norm,
)
from triscale.evaluation import EvalConfig, Evaluation, evaluate
from triscale.gradients import Gradients
from triscale.interrupt import Interrupted
from triscale.log import Narrator
from triscale.model.yolo import YOLOv3, build_model
from triscale.recipe import Recipe
from triscale.types import Losses

PICTURES = 7  # of the batch norm: 3 + 4, and 2 + 2 + 3
TOTALS = (7, 2)  # rows to gather; of 2 the third process has none
SAID = {"best": 0.5, "lines": ["é"], "pending": None}
STOPPED = 2  # steps after which one of two processes is asked to stop; they do one more
BROKEN = (2, 3, 4)  # steps, from 0, in which the losses of one of two processes are no numbers


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
    return torch.randn(PICTURES, 3, 4, 5, generator=torch.Generator().manual_seed(1))


def share(rank: int, count: int) -> slice:
    return slice(PICTURES * rank // count, PICTURES * (rank + 1) // count)


def backward(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient for a loss that no symmetry makes vanish; sums over the batch."""
    x.requires_grad_()
    output = model(x)
    (output.sin().sum() + output.square().sum()).backward()
    assert x.grad is not None
    return output.detach(), x.grad


def untrained(settings: Recipe, data: Data) -> YOLOv3:
    generator = torch.Generator().manual_seed(settings.train.seed)
    return build_model(settings.model, len(data.classes), generator=generator)


def measure(settings: Recipe, data: Data, processes: Processes) -> Evaluation:
    assert data.val
    return evaluate(
        untrained(settings, data),
        data.val,
        size=settings.train.size,
        input_config=settings.input,
        config=EvalConfig(iou=0.05),  # an untrained network must hit something
        decode=settings.decode,
        batch_size=1,  # a kernel may add in another order for another number of pictures
        processes=processes,
    )


def work(rank: int, folder: Path, devkit: Path, settings: Recipe, ports: list[int]) -> None:
    """Three processes join as three; then two of them as two, while the third works alone."""
    torch.set_num_threads(1)
    data = open_dataset(devkit, settings.data)
    join(rank, 3, port=ports.pop())
    exchange(settings, data, folder)
    join(rank, 3, port=ports.pop())
    run_quietly(settings, data, folder / "3")
    join(rank, 3, port=ports.pop())
    in_parts = replace(settings.train, accumulate=2, epochs=1)
    run_quietly(replace(settings, train=in_parts), data, folder / "3-parts")
    if rank == 2:
        join(0, 1, port=ports[0])
        exchange(settings, data, folder)
        run_quietly(settings, data, folder / "1")
        alone = folder / "1-joined"
        train_in_a_group_of_one(settings, data, alone, port=ports.pop(0))
    else:
        work_in_pairs(rank, folder, data, settings, ports[1:])
    (folder / f"ready-{rank}").touch()
    while len(list(folder.glob("ready-*"))) < 3:
        time.sleep(0.02)
    join(rank, 3, port=ports[-1])
    run_quietly(settings, data, folder / "3-resumed", resume=True)
    if rank == 2:
        join(0, 1, port=0)
        run_quietly(settings, data, folder / "1-resumed", resume=True)


def work_in_pairs(rank: int, folder: Path, data: Data, settings: Recipe, ports: list[int]) -> None:
    join(rank, 2, port=ports.pop(0))
    exchange(settings, data, folder)
    join(rank, 2, port=ports.pop(0))
    run_quietly(settings, data, folder / "2")
    join(rank, 2, port=ports.pop(0))
    stopped = run_until_stopped(rank, settings, data, folder / "2-stopped")
    (folder / f"stopped-{rank}").write_text(stopped)
    if rank == 0:
        for count in (1, 2, 3):
            shutil.copytree(folder / "2-stopped", folder / f"{count}-resumed")
        (folder / "copied").touch()
    while not (folder / "copied").exists():
        time.sleep(0.02)
    join(rank, 2, port=ports.pop(0))
    run_quietly(settings, data, folder / "2-resumed", resume=True)
    join(rank, 2, port=ports.pop(0))
    run_with_broken_steps(rank, settings, data, folder / "2-broken")


def exchange(settings: Recipe, data: Data, folder: Path) -> None:
    """Each kind of exchange once; what came of it goes to a file."""
    with join_processes(torch.device("cpu")) as processes:
        rank, count = processes
        model = network()
        if count > 1:
            synchronise_batch_norm(model)
        gradients = Gradients(model, notes=2)
        output, input_gradient = backward(model, images()[share(rank, count)])
        gradients.notes.copy_(torch.tensor([1.0, rank]))
        gradients.exchange(processes)
        results: dict[str, Any] = {
            "output": output,
            "input_gradient": input_gradient,
            "gradients": [p.grad.clone() for p in model.parameters() if p.grad is not None],
            "notes": gradients.notes.clone(),
            "state": model.state_dict(),
            "finite": [bool(gradients.finite())],
        }
        if rank == count - 1:
            gradients.notes[0] = torch.nan
        gradients.exchange(processes)
        results["finite"].append(bool(gradients.finite()))
        shared = torch.full((2,), float(rank + 5))
        share_tensors([shared], processes)
        results["shared"] = shared
        said = SAID if processes.is_main else None
        results["said"] = share_value(said, processes, device=torch.device("cpu"))
        mine = [torch.arange(rank, total, count) for total in TOTALS]
        results["gathered"] = [
            gather_interleaved(torch.stack([rows, rows * 10], 1), total, processes)
            for rows, total in zip(mine, TOTALS, strict=True)
        ]
        found = measure(settings, data, processes)
        results["mAP"] = found.mean
        results["detections"] = [
            [torch.from_numpy(field) for field in (d.boxes, d.scores, d.labels)]
            for d in found.detections
        ]
        torch.save(results, folder / f"{count}-{rank}.pt")


def train_in_a_group_of_one(settings: Recipe, data: Data, run: Path, *, port: int) -> None:
    """With our batch norm, PyTorch's own agrees with it less closely."""
    model = untrained(settings, data)
    synchronise_batch_norm(model)
    where = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    training.train(settings, data, run, model=model, narrator=Narrator(enabled=False))
    dist.destroy_process_group()


def run_until_stopped(rank: int, settings: Recipe, data: Data, run: Path) -> str:
    """The second process is asked to stop; what each of them finds when it does."""

    class Asked(Narrator):
        steps = 0

        def advance(self, note: str = "", *, what: str | None = None, amount: float = 1) -> None:
            self.steps += 1
            if rank == 1 and self.steps == STOPPED:
                signal.raise_signal(signal.SIGUSR1)

    save = training.save_state

    def save_slowly(*arguments: Any, **named: Any) -> None:
        time.sleep(0.5)
        save(*arguments, **named)

    training.save_state = save_slowly
    try:
        training.train(settings, data, run, narrator=Asked(enabled=False))
    except Interrupted as stopped:
        there = (run / "last" / f"step-{STOPPED + 1:08d}.json").exists()
        return f"{stopped} ({'' if there else 'not '}saved)"
    finally:
        training.save_state = save
    return "never stopped"


def run_with_broken_steps(rank: int, settings: Recipe, data: Data, run: Path) -> None:
    """The second process's losses are no numbers three times in a row."""
    batch_losses, calls = training.batch_losses, iter(range(1000))

    def broken(*arguments: Any, **named: Any) -> Losses:
        found = batch_losses(*arguments, **named)
        factor = torch.nan if rank == 1 and next(calls) in BROKEN else 1.0
        return Losses(*(term * factor for term in found))

    training.batch_losses = broken
    run_quietly(settings, data, run)
