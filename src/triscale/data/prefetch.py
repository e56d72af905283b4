"""Batches on their way to a GPU while it still computes.

The host runs a step or two ahead of a GPU. A copy that is queued behind the step before would begin
when that step ends; in a queue of its own it begins at once, and its step finds it done. The rules
for memory that two queues use are those of PyTorch's notes on CUDA semantics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from triscale.types import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, in order; nothing is asked for before it is wanted.

    For a GPU they must lie in pinned memory, or the copies make the host wait. To the CPU there is
    nothing to copy.
    """
    return _copied(batches, device) if device.type == "cuda" else batches


def _copied(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    copies = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            there = batch.to(device)
        work = torch.cuda.current_stream(device)
        work.wait_stream(copies)
        for field in there:
            field.record_stream(work)  # else the next copy may get memory that work still reads
        yield there
