"""OpenVINO without its reports.

`import openvino` counts itself at Google Analytics, from a process of its own, and keeps a number
for its user in ~/intel (since 2024; measured with 2026.4 and openvino-telemetry 2025.2). It leaves
that out where the package openvino-telemetry is missing, as nncf does. So it is missing.
"""

from __future__ import annotations

import sys


def refuse_telemetry() -> None:
    """Before the first `import openvino` of a process: makes it, and what uses it, send nothing."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # import says: not there
