"""A moving average of the weights: a second network that follows the one that is trained.

    average <- d * average + (1 - d) * weights,    d = min(decay, (1 + n) / (10 + n)) at update n

Polyak and Juditsky 1992 average to take the noise out of the last steps; Tarvainen and Valpola
2017 do it with a decay that grows. The ramp is the one that TensorFlow documents for the
`num_updates` of `ExponentialMovingAverage`. Until it reaches `decay` the memory, 1 / (1 - d) steps,
is a ninth of the run so far, however short it is; a ramp with a time constant of its own, 2000
steps for example, would leave a run of 200 without an average.
"""

# PyTorch has no public name for its multi-tensor operations; its own optimisers call these.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from triscale.model.yolo import YOLOv3
from triscale.updates import is_read


def decay_at(step: int, decay: float) -> float:
    """d of the formula above at a step of the run, counted from 0."""
    return min(decay, (1 + step) / (10 + step))


class Average:
    """The average of a network, which begins as its copy.

    All of its state dict is averaged, batch statistics too, but for the counters of batches, which
    are copied.
    """

    def __init__(self, model: YOLOv3, *, decay: float) -> None:
        self.network = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay
        self._ours, self._our_counters = _split(self.network)
        self._theirs, self._their_counters = _split(model)

    @torch.no_grad()
    def follow(self, step: int, *, ok: Tensor) -> None:
        """Take in what `step` made of the network; where `ok` (() bool) is false, nothing.

        On a GPU `ok` isn't read back: what was trained must be finite also where it is false.
        """
        share = 1 - decay_at(step, self._decay)
        if is_read(ok):
            if not ok:
                return
            torch._foreach_lerp_(self._ours, self._theirs, share)
        else:
            _lerp_where(ok, self._ours, self._theirs, share)
        # where a step is none, it was taken back in these already
        torch._foreach_copy_(self._our_counters, self._their_counters)


def _lerp_where(ok: Tensor, ours: list[Tensor], theirs: list[Tensor], share: float) -> None:
    """Move `ours` towards `theirs` by a share of the way where `ok` (() bool) is true, unread."""
    moves = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(moves, torch.where(ok, share, 0.0))
    torch._foreach_add_(ours, moves)


def _split(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a network's state dict, not copies: those of real numbers, and the others."""
    tensors = network.state_dict().values()
    return (
        [tensor for tensor in tensors if tensor.is_floating_point()],
        [tensor for tensor in tensors if not tensor.is_floating_point()],
    )
