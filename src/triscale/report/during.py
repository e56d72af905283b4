"""The report of a run that is under way: written anew after each validation."""

from __future__ import annotations

import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import triscale
from triscale.errors import UserError
from triscale.evaluation import Evaluation
from triscale.packages import require_packages
from triscale.report.found import BEST, LAST, Found, save_found


def keep_up(folder: Path, found: Found, *, is_best: bool, say: Callable[[str], None]) -> None:
    """Write what a validation found into the folder of its run, and the page.

    A disk that fails ends the run, as with all of its files; whatever else goes wrong with the page
    is said, and the run goes on.
    """
    save_found(folder / LAST, found)
    if is_best:
        save_found(folder / BEST, found)
    try:
        require_packages("matplotlib", purpose="the page")
        from triscale.report.build import NAME, write_report  # here: it loads the drawing library
        from triscale.report.story import read_story

        write_report(read_story(folder), folder / NAME)
    except OSError:
        raise
    except Exception as error:  # a page isn't worth a run
        lines = str(error).splitlines() or [type(error).__name__]
        what = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
        say(f"no report.html this time ({what}); triscale report {folder} makes one")


def describe_validation(
    evaluation: Evaluation,
    *,
    seconds: float,
    device: torch.device,
) -> dict[str, Any]:
    """What is known about a validation besides its detections, as JSON."""
    logged = evaluation.to_json()
    on_gpu = device.type == "cuda"
    return {
        "metric": evaluation.metric,
        "mAP": logged["mAP"],
        "per_class": logged["per_class"],
        "validation_seconds": seconds,
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "versions": (
            f"triscale {triscale.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}"
        ),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts in KiB
        "gpu_memory": torch.cuda.max_memory_allocated(device) if on_gpu else 0,
    }
