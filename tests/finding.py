"""Detections from rows, as a person writes them."""

from __future__ import annotations

import numpy as np

from triscale.detections import Detections


def found(*rows: tuple[float, ...], classes: tuple[str, ...] = ()) -> Detections:
    """Rows of x1, y1, x2, y2, score, class."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), classes)
