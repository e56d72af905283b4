"""Several processes, one result: torchrun's environment, sums, batch statistics, gathering.

Every process holds the same weights and sees its share of each global batch; losses are divided by
the global batch, so summed gradients are those of one process with the whole batch.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from triscale.errors import ProcessLostError, UserError, ran_out_of_memory

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


class Processes(NamedTuple):
    """This process's place among those of the run."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0


def choose_device(name: str) -> torch.device:
    """The device for cpu, cuda, cuda:N or auto; under torchrun, `cuda` is the process's own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: expected cpu, cuda, cuda:N or auto, got '{name}'") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device: expected cpu, cuda, cuda:N or auto, got '{name}'")
    if device.type == "cpu":
        return torch.device("cpu")
    index = device.index if ":" in name else int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise UserError(
            f"device: '{name}' asks for GPU {index}, there are {torch.cuda.device_count()}"
        )
    return torch.device("cuda", index)


def processes_here() -> int:
    """How many of the run's processes are on this machine; all of them, unless it was said."""
    said = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "")
    return int(said) if said.isdecimal() and int(said) else 1


@contextmanager
def join_processes(device: torch.device) -> Generator[Processes]:
    """The processes that torchrun started, joined while the block runs; else just this one."""
    said = os.environ.get("WORLD_SIZE") or "1"
    if said == "1":
        yield Processes()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not said.isdecimal():
        raise UserError(
            f"WORLD_SIZE={said} in the environment asks for several processes, but "
            f"{' and '.join(missing) or 'it'} isn't set rightly; start them with torchrun, or "
            "unset WORLD_SIZE"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _peers():
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            place = Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
            dist.init_process_group(
                backend, store=_fresh_store(place), rank=place.rank, world_size=place.world_size
            )
        else:
            dist.init_process_group(backend)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def add_up(tensor: Tensor, processes: Processes) -> None:
    """Replace a tensor by its sum over the processes."""
    if processes.world_size > 1:
        with _peers():
            dist.all_reduce(tensor)


def meet(processes: Processes, *, device: torch.device) -> None:
    """Wait until every process has come here."""
    here = torch.ones((), device=device)
    add_up(here, processes)
    here.item()  # NCCL only queues the sum


def share_tensors(tensors: Iterable[Tensor], processes: Processes) -> None:
    """Give every process the main one's values."""
    if processes.world_size > 1:
        for tensor in tensors:
            with _peers():
                dist.broadcast(tensor, 0)


def share_value(value: Any, processes: Processes, *, device: torch.device) -> Any:
    """The main process's value, in every process; anything that JSON can hold."""
    if processes.world_size == 1:
        return value
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    length = torch.tensor(len(text), device=device)
    share_tensors([length], processes)
    if not processes.is_main:
        text = torch.empty(int(length), dtype=torch.uint8, device=device)
    share_tensors([text], processes)
    return json.loads(bytes(text.tolist()))


def gather_interleaved(tensor: Tensor, total: int, processes: Processes) -> Tensor:
    """Rows of all processes, row i from process i % world_size: (n_rank, ...) -> (total, ...)."""
    if processes.world_size == 1:
        return tensor
    rows = -(-total // processes.world_size)
    padded = torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(processes.world_size)]
    with _peers():
        dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:total]


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes; each one's gradient goes to all of them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        with _peers():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        with _peers():
            dist.all_reduce(total)
        return total


def _sum(tensor: Tensor) -> Tensor:
    return cast("Tensor", _SumOverProcesses.apply(tensor))


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the joined batch of all processes; torch's own works on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, normalised by the statistics of every process's batch."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        dims = (0, 2, 3)
        total = _sum(torch.cat([x.sum(dims), x.new_full((1,), x.numel() / x.shape[1])]))
        count = total[-1:].detach()
        # The mean first: sums of squares about zero would cancel where the mean is large.
        mean = total[:-1] / count
        centred = x - mean[:, None, None]
        variance = _sum(centred.square().sum(dims)) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def synchronise_batch_norm(model: nn.Module) -> None:
    """Replace every batch norm inside `model` by a SyncBatchNorm that shares its parameters."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                synced = SyncBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum)
                synced.weight, synced.bias = child.weight, child.bias
                for key, buffer in child.named_buffers():
                    setattr(synced, key, buffer)
                setattr(parent, name, synced.train(child.training))


def _fresh_store(place: Processes) -> Store:
    """torchrun's store, without what processes of an earlier try have left in it.

    It hands the same store to those that it starts anew, and they would look for each other at the
    addresses of the dead (pytorch issue 135712). So the main process makes up a name for this try
    and tells it to those who ask under a name of their own, until each has said that it knows.
    """
    from torch.distributed.distributed_c10d import PrefixStore  # some builds have none
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    mine = uuid.uuid4().hex
    if not place.is_main:
        store.set(f"asks/{place.rank}", mine)
        name = store.get(f"told/{mine}").decode()  # waits
        store.set(f"knows/{name}/{place.rank}", "")
        return PrefixStore(name, store)
    deadline = time.monotonic() + dist.default_pg_timeout.total_seconds()
    missing = set(range(1, place.world_size))
    while missing and time.monotonic() < deadline:
        for rank in [r for r in missing if store.check([f"asks/{r}"])]:
            store.set(f"told/{store.get(f'asks/{rank}').decode()}", mine)
        missing = {r for r in missing if not store.check([f"knows/{mine}/{r}"])}
        time.sleep(0.01)
    if missing:
        raise ProcessLostError(f"the processes {sorted(missing)} of this run haven't come")
    return PrefixStore(mine, store)


@contextmanager
def _peers() -> Generator[None]:
    """What the backends raise when another process is gone, as ProcessLostError."""
    try:
        yield
    except RuntimeError as error:  # gloo has no type of its own
        if ran_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise ProcessLostError(
            f"another process of this run can't be reached; its own message says why ({reason})"
        ) from error
