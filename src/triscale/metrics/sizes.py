"""AP and recall by the size of the objects."""

from __future__ import annotations

from typing import NamedTuple


class SizeRow(NamedTuple):
    """The objects of a range of areas."""

    name: str
    objects: int  # that count
    ap: float  # at IoU 0.5, area measure, mean over the classes; nan without objects
    recall: float  # share of the objects found from the score threshold on; nan without objects
