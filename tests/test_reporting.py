"""What a run says, in lines: they are documented, and programs read them."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from triscale.evaluation import Evaluation
from triscale.log import LOSSES, Meter
from triscale.reporting import (
    epoch_line,
    eval_line,
    live_lines,
    step_line,
    train_line,
    train_record,
)

# as docs/logging.md has it
TRAIN = re.compile(
    r"\[epoch (\d+)\] step (\d+) lr (\S+) loss (\S+) \(objectness (\S+) centre (\S+) scale (\S+) "
    r"classes (\S+?)(?: iou (\S+))?\) (\S+) img/s, waited (\S+) s for data(?:, GPU (\S+) GiB)?, "
    r"(\d+:\d\d:\d\d|-:--:--) left"
)


def record(*, iou: float = 0.0, memory: float = 0.0) -> dict[str, Any]:
    means = [4.0, 2.0, 3.0, 1.0, iou]
    return train_record(means, 400, epoch=3, rate=1e-3, meter=Meter(), memory=memory)


def test_a_record_has_the_mean_losses_by_name() -> None:
    made = record(iou=0.5)
    assert made["loss"] == 10.5
    assert [made[name] for name in LOSSES] == [4.0, 2.0, 3.0, 1.0, 0.5]
    assert "gpu_gib" not in made
    assert record(memory=5.126)["gpu_gib"] == 5.13


@pytest.mark.parametrize(
    ("made", "left", "expected"),
    [
        (record(), math.nan, ("10.000", None, None, "-:--:--")),
        (record(iou=0.5), 61.0, ("10.500", "0.500", None, "0:01:01")),
        (record(memory=5.13), 3600.0, ("10.000", None, "5.1", "1:00:00")),
    ],
)
def test_a_train_line_can_be_parsed(
    made: dict[str, Any], left: float, expected: tuple[str, ...]
) -> None:
    found = TRAIN.fullmatch(train_line(made, left=left))
    assert found
    assert found.group(1, 2, 3) == ("3", "400", "1.00e-03")
    assert found.group(4, 9, 12, 13) == expected


def test_lines_of_a_terminal_fit_into_80_columns() -> None:
    long = {"epoch": 299, "step": 2_200_000, "loss": 12345.678, "images_per_second": 9999.9}
    assert len(epoch_line(record() | long)) <= 80
    meter = Meter()
    meter.see([234.5, 123.4, 123.4, 123.4, 0.0])
    last = Evaluation("voc07", 0.7123, {}, {}, 4, [])
    lines = live_lines(meter, rate=1e-3, memory=(70.25, 79.1), best="0009:\t0.7310", last=last)
    assert lines == [
        "loss 604.700: objectness 234.500, centre 123.400, scale 123.400, classes 123.400",
        "lr 1.00e-03   0.0 img/s   waiting for data 0%   GPU 70.2 of 79.1 GiB",
        "voc07 mAP 0.7123   best mAP 0.7310 (epoch 9)",
    ]
    assert max(map(len, lines)) <= 80
    assert live_lines(Meter(), rate=0.5, memory=(0, 0), best="", last=None) == [
        "lr 5.00e-01   0.0 img/s   waiting for data 0%"
    ]
    resumed = live_lines(Meter(), rate=0.5, memory=(0, 0), best="0012:\t0.5000", last=None)
    assert resumed[-1] == "best mAP 0.5000 (epoch 12)"


def test_step_line() -> None:
    line = step_line([1.0, 2.0, 3.0, 4.0, 0.0], 7, side=(320, 416), ok=True)
    terms = "objectness 1.000 centre 2.000 scale 3.000 classes 4.000"
    assert line == f"step 7 at 416x320: loss 10.000 ({terms})"
    bad = step_line([1.0, math.inf, 3.0, 4.0, 0.0], 7, side=(320, 416), ok=False)
    assert bad.startswith("step 7 at 416x320: loss inf (")
    assert bad.endswith(", skipped")


@pytest.mark.parametrize(
    ("per_class", "expected"),
    [
        ({}, "[epoch 3] voc mAP 0.5000 ()"),
        ({"a": 0.25, "b": np.nan}, "[epoch 3] voc mAP 0.5000 (a 0.250, b nan)"),
        ({str(k): 0.0 for k in range(21)}, "[epoch 3] voc mAP 0.5000"),
    ],
)
def test_eval_line(per_class: dict[str, float], expected: str) -> None:
    assert eval_line(Evaluation("voc", 0.5, per_class, {}, 1, []), 3) == expected
