"""The public names, as users may rely on them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import triscale

PUBLIC = [
    "Batch",
    "Detections",
    "Detector",
    "Recipe",
    "Sample",
    "UserError",
    "YOLOv3",
    "build_model",
    "choose",
    "coco_ap",
    "darknet53",
    "evaluate",
    "load_recipe",
    "load_weights",
    "mobilenet",
    "open_dataset",
    "save_weights",
    "train",
    "voc_ap",
]


def test_exactly_these() -> None:
    assert triscale.__all__ == PUBLIC
    assert dir(triscale) == sorted([*PUBLIC, "__version__"])


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_there(name: str) -> None:
    assert getattr(triscale, name).__name__ == name


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'triscale' has no attribute 'trian'"):
        _ = triscale.trian  # type: ignore[attr-defined]


def test_the_names_and_not_the_modules() -> None:
    """`triscale.train` is a function, `triscale.evaluate` too, whatever was imported before."""
    code = """
import triscale, triscale.cli
assert not {'torch', 'numpy', 'cv2'} & set(__import__('sys').modules)
import triscale.runs
print(callable(triscale.train), callable(triscale.evaluate))
from triscale import train, evaluate
print(callable(train), callable(evaluate))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.split(), done.stderr) == (["True"] * 4, "")
