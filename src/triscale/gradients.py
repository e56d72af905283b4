"""One optimiser step that may turn out to be none.

All gradients lie in one flat tensor, with room for a few numbers more at its end. So one exchange
makes a step of many processes, one look tells whether it is made of numbers, and one mask takes it
back, none of which waits for the device. A batch that made infinities also reached the running
statistics of the batch norms; those are put back too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triscale.distributed import Processes, add_up
from triscale.updates import is_read


def is_finite(tensor: Tensor) -> Tensor:
    """() bool, on the device: whether all of a tensor is finite."""
    low, high = torch.aminmax(tensor)  # NaN spreads to both; 20 times faster than isfinite()
    return low.isfinite() & high.isfinite()


class Gradients:
    """The gradients of `model`: each parameter's `.grad` is a view of one tensor.

    `notes` (n,) float32 are numbers that are summed over the processes along with them.
    """

    def __init__(self, model: nn.Module, *, notes: int) -> None:
        params = [p for p in model.parameters() if p.requires_grad]
        count = sum(p.numel() for p in params)
        self._flat = torch.zeros(count + notes, device=params[0].device)
        self.notes = self._flat[count:]
        start = 0
        for param in params:
            # the parameter's own strides: channels-last kernels are added to as they come
            assert param.dtype == torch.float32
            param.grad = self._flat.as_strided(param.shape, param.stride(), start)
            start += param.numel()

    @property
    def bytes(self) -> int:
        """What one exchange carries."""
        return self._flat.nbytes

    def clear(self) -> None:
        """Zero everything, before the first backward pass of a step."""
        self._flat.zero_()

    def exchange(self, processes: Processes) -> None:
        """Sum over the processes."""
        add_up(self._flat, processes)

    def finite(self) -> Tensor:
        """() bool, on the device: whether all gradients and notes are numbers."""
        return is_finite(self._flat)

    def clear_unless(self, ok: Tensor) -> None:
        """Zero the gradients, not the notes, of a step that is none; `ok` () bool."""
        if is_read(ok) and bool(ok):
            return
        self._flat[: -len(self.notes)].masked_fill_(~ok, 0)


class Statistics:
    """The buffers of `model` as they were before a step."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Remember the buffers."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            kept.copy_(buffer)

    def restore_unless(self, ok: Tensor) -> None:
        """Put them back after a step that is none; `ok` () bool."""
        if is_read(ok):
            if not ok:
                self.restore()
            return
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            torch.where(ok, buffer, kept, out=buffer)

    def restore(self) -> None:
        """Put them back."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)
