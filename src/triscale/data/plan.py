"""The plan: which pictures each training step sees, and every random decision about them.

Nothing random lives in the workers. A step's samples are a pure function of (seed, step): the same
for any number of workers or processes, and a run that resumes at step s needs no generator state.
Epochs are laid end to end, so that the remainder of one leads the first batch of the next (the
reference's `last_batch='rollover'`) and every picture is seen exactly once per epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from triscale.data.augment import AugmentConfig
from triscale.types import Draw

# The first word after the seed keeps the streams of different decisions apart.
_ORDER, _SAMPLE, _MIXUP, _SHAPE, _SUBSET, _MOSAIC = range(6)


# A mosaic's pictures are shown within so many samples, so that a process that keeps the last few
# pictures decodes each about once.
_NEIGHBOURS = 16


def generator(seed: int, *words: int) -> np.random.Generator:
    """An independent random stream for each tuple of whole numbers."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


@lru_cache(maxsize=4)  # an order is asked for at every step of its epoch
def _order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return generator(seed, _ORDER, epoch).permutation(num_images)


def subset(num_images: int, num_samples: int, seed: int) -> NDArray[np.int64]:
    """The first `num_samples` images (all for 0) of the seeded order."""
    return np.sort(generator(seed, _SUBSET).permutation(num_images)[: num_samples or None])


@dataclass(frozen=True)
class Plan:
    """Arithmetic on steps; a step is one optimiser update with `batch_size` pictures."""

    num_images: int
    batch_size: int  # over all processes
    epochs: int
    seed: int
    size: int  # side of the square network input when shapes are not random
    augment: AugmentConfig

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return self.first_step(self.epochs)

    def first_step(self, epoch: int) -> int:
        """The step at which an epoch begins."""
        return epoch * self.num_images // self.batch_size

    def epoch_of(self, step: int) -> int:
        """The epoch that a step belongs to: the last one that has begun."""
        return ((step + 1) * self.batch_size - 1) // self.num_images

    def size_of(self, step: int) -> tuple[int, int]:
        """(height, width) of a step's pictures."""
        shapes = self.augment
        if not shapes.random_shape:
            return self.size, self.size
        epoch = self.epoch_of(step)
        block = (step - self.first_step(epoch)) // shapes.shape_interval
        sizes = range(shapes.shape_min, shapes.shape_max + 1, shapes.shape_step)
        side = sizes[int(generator(self.seed, _SHAPE, epoch, block).integers(len(sizes)))]
        return side, side

    def draws(self, step: int) -> list[Draw]:
        """The samples of a step, in order."""
        size = self.size_of(step)
        left = self.epochs - self.epoch_of(step)  # epochs, this one included
        mosaic = self.augment.mosaic if left > self.augment.mosaic_off_epochs else 0.0
        mixed = self.augment.mixup and left > self.augment.mixup_off_epochs
        start = step * self.batch_size
        return [
            self._draw(position, size, mosaic=mosaic, mixed=mixed)
            for position in range(start, start + self.batch_size)
        ]

    def _image(self, position: int) -> int:
        epoch, place = divmod(position, self.num_images)
        return int(_order(self.num_images, self.seed, epoch)[place])

    def _draw(self, position: int, size: tuple[int, int], *, mosaic: float, mixed: bool) -> Draw:
        index = self._image(position)
        words = np.random.SeedSequence([self.seed, _SAMPLE, position]).generate_state(1, np.uint64)
        draw = Draw(index, size, int(words[0]))
        if self.num_images < 2:
            return draw
        if mosaic:
            rng = generator(self.seed, _MOSAIC, position)
            if rng.random() < mosaic:  # and no mixup: more than four pictures hide each other
                # Of the block of neighbours that it lies in: they are another epoch's in part if
                # it holds a border, and the same picture where there are fewer than a block.
                start, own = divmod(position, _NEIGHBOURS)
                ahead = 1 + rng.choice(_NEIGHBOURS - 1, 3, replace=False)
                others = start * _NEIGHBOURS + (own + ahead) % _NEIGHBOURS
                return draw._replace(tiles=tuple(map(self._image, others.tolist())))
        if not mixed:
            return draw
        rng = generator(self.seed, _MIXUP, position)
        ratio = float(rng.beta(self.augment.mixup_alpha, self.augment.mixup_alpha))
        if ratio >= 1:
            return draw
        partner = int(rng.integers(self.num_images - 1))  # any other picture
        return draw._replace(partner=partner + (partner >= index), ratio=ratio)


class PlanSampler(Sampler[list[Draw]]):
    """Batches of draws for a DataLoader, from step `start` up to `stop`; one process's share."""

    def __init__(
        self, plan: Plan, *, start: int, stop: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._plan, self._steps = plan, range(start, stop)
        first, end = (plan.batch_size * r // world_size for r in (rank, rank + 1))
        self._share = slice(first, end)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Draw]]:
        return (self._plan.draws(step)[self._share] for step in self._steps)


def validation_draws(
    num_images: int, size: int, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[Draw]]:
    """Every picture once and in order, unaugmented; the last batch may be short."""
    draws = [Draw(i, (size, size), 0, augment=False) for i in range(rank, num_images, world_size)]
    return [draws[i : i + batch_size] for i in range(0, len(draws), batch_size)]
