"""Why detections are wrong, and what each kind of mistake costs in AP: TIDE's analysis."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KINDS = ("class", "location", "both", "duplicate", "background", "missed")


class Errors(NamedTuple):
    """The six kinds of TIDE; what d_ap holds is in 0..1, and AP is the area measure."""

    kinds: tuple[str, ...]  # names, in the order of the arrays: KINDS
    counts: NDArray[np.int64]  # (6,) over all scores
    ap: float  # mean AP as it is
    d_ap: NDArray[np.float64]  # (6,) what the mean AP gains once this kind alone is mended
    fp_d_ap: float  # the same without any false detection
    fn_d_ap: float  # the same without any missed object
    kind_of: NDArray[np.int8]  # (D,) place in `kinds`; -1: correct or ignored
    missed: NDArray[np.intp]  # (M',) rows of the truth that are counted as missed
