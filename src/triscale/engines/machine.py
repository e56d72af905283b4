"""What of this machine and its packages an engine uses."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any

from triscale.errors import UserError


def cores() -> int:
    """How many CPU cores this process may use; not every system can limit a process to some."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def is_here(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


def require_packages(*packages: str, purpose: str) -> None:
    """UserError with the command that installs them if one of the packages is missing."""
    missing = [package for package in packages if not is_here(package)]
    if missing:
        raise UserError(
            f"{purpose} needs {' and '.join(missing)}, not installed here: "
            f"pip install {' '.join(missing)}"
        )


def import_openvino() -> Any:
    """The package, without its telemetry: to import it would tell Google Analytics so.

    It does without where openvino_telemetry isn't installed; while it is imported, it isn't.
    """
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]
        try:
            import openvino
        finally:
            del sys.modules["openvino_telemetry"]
        return openvino
    import openvino

    return openvino
