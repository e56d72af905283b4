"""Several processes, one result: torchrun's environment, gradients, batch statistics, gathering.

Every process holds the same weights and sees its share of each global batch; losses are divided by
the global batch, so summed gradients are those of one process with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from triscale.errors import UserError


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


@contextmanager
def join_processes(device: torch.device) -> Generator[Processes]:
    """The processes that torchrun started, joined while the block runs; else just this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def sum_gradients(model: nn.Module, processes: Processes) -> None:
    """Replace every gradient by its sum over the processes, in one flat exchange."""
    if processes.world_size == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def sum_tensor(tensor: Tensor, processes: Processes) -> Tensor:
    """The sum of a tensor over the processes."""
    if processes.world_size > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def share_buffers(model: nn.Module, processes: Processes) -> None:
    """Give every process the main one's batch-norm statistics (equal anyway with SyncBN)."""
    if processes.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def gather_interleaved(tensor: Tensor, total: int, processes: Processes) -> Tensor:
    """Rows of all processes, row i from process i % world_size: (n_rank, ...) -> (total, ...)."""
    if processes.world_size == 1:
        return tensor
    rows = -(-total // processes.world_size)
    padded = torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(processes.world_size)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:total]


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes; each one's gradient goes to all of them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
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
        count = _sum(x.new_tensor([x.numel() / x.shape[1]]))
        # The mean first: sums of squares about zero would cancel where the mean is large.
        mean = _sum(x.sum(dims)) / count
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
