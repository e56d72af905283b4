"""Whether the network waits for its pictures, and which setting would help.

A loader that is too slow shows in nothing but the clock: the device idles, the run takes longer,
the result is the same. So it's said, once, with the command that mends it.
"""

from __future__ import annotations

import math

from triscale.distributed import processes_here
from triscale.engines.machine import cores
from triscale.log import Recent
from triscale.progress import Run
from triscale.recipe import Recipe

_SHARE = 0.2  # of the time; below that there is little to gain
_STEPS, _SECONDS = 50, 30.0  # before which it may be the start, or another program


def advice_on_waiting(run: Run, recent: Recent) -> str:
    """A line for people, or nothing if there is nothing to say (yet)."""
    if recent.steps < _STEPS or recent.seconds < _SECONDS or recent.share < _SHARE:
        return ""
    each = max(1, cores() // processes_here())
    remedy, flags = remedy_for(run.recipe, recent.share, cores=each)
    line = f"waited {recent.share:.0%} of the last {recent.seconds:.0f} s for data: {remedy}"
    if not flags:
        return line
    return f"{line}\n  (Ctrl-C, then: triscale train --resume {run.folder} {flags})"


def remedy_for(recipe: Recipe, share: float, *, cores: int) -> tuple[str, str]:
    """What would help against waiting for a share of the time, and the flags for it.

    `cores` are those of each process. First what leaves the samples as they are.
    """
    workers = recipe.train.workers
    # W workers load as fast as a step with its wait lasts: without one they'd have to be W / (1 -
    # share). Without workers the wait is the loading itself.
    enough = math.ceil((workers or share) / max(1 - share, 0.01))
    better = min(enough, max(1, cores - 1) if cores > 1 else 0)
    if better > workers:
        there = f"{workers} now, {cores} cores"
        many = "process" if better == 1 else "processes"
        return f"try {better} data loading {many} ({there})", f"--workers {better}"
    if not recipe.data.cache and not recipe.augment.fast_resize:
        return "keep decoded pictures in memory", "--set data.cache=ram"
    if not recipe.augment.fast_resize:
        return (
            "try the faster resize, which changes the samples a little",
            "--set augment.fast_resize=true",
        )
    return "pictures that are stored at the size they are trained at would load faster", ""
