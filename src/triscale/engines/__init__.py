"""What computes detections: torch, onnxruntime or OpenVINO, behind one small interface.

The modules of the last two, and this one, need no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from triscale.detections import Detections
from triscale.pixels import Fit


class Engine(Protocol):
    """A network that is ready: pictures at its size in, detections in their own pixels out."""

    classes: tuple[str, ...]
    size: tuple[int, int]  # (height, width) of the network input
    fit: Fit  # how pictures are brought to it
    recipe: Mapping[str, Any]  # of its training, by section
    name: str  # for people: "onnxruntime 1.32, fp32, CPU"

    def __call__(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> list[Detections]:
        """Pictures (N, H, W, 3) fitted into `size`, and the heights and widths (N, 2) that they
        had before -> the detections of each."""
        ...
