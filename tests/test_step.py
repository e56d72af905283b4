"""The rehearsal at the largest shape: it leaves no trace, and says what to do if it fails.

And a batch in parts, and the memory that steps leave to each other.
"""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.running import MakeRecipe, assert_same_run, records, run_quietly
from triscale import step
from triscale.data.open import Data
from triscale.errors import OutOfMemoryError

PAGE = resource.getpagesize()  # bytes
SHAPES = (
    *("augment.random_shape=true", "augment.shape_min=64", "augment.shape_max=140"),
    "augment.shape_interval=2",
)


def test_nothing_is_tried_without_random_shapes(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(step, "_blank", never)
    run_quietly(tiny_recipe("train.epochs=1"), data, tmp_path)
    assert len(records(tmp_path, "train")) == 2


@pytest.mark.parametrize("overrides", [(), ("train.precision=fp16",), ("train.accumulate=3",)])
def test_the_rehearsal_leaves_no_trace(
    overrides: tuple[str, ...], data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe(*SHAPES, "augment.mixup=true", *overrides)
    tried: list[tuple[int, ...]] = []

    def blank(pictures: int, side: int, objects: int) -> Any:
        tried.append((pictures, side, objects))
        return original(pictures, side, objects)

    original = step._blank
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "_blank", blank)
        run_quietly(recipe, data, tmp_path / "with")
    assert data.train is not None
    most = 2 * max(data.train.objects(i).stop - data.train.objects(i).start for i in range(10))
    # the sides are 64, 96, 128: 140 isn't among them
    assert tried == [(2 if "train.accumulate=3" in overrides else 4, 128, most)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triscale.training.try_largest", lambda *_: None)
        run_quietly(recipe, data, tmp_path / "without")
    assert_same_run(tmp_path / "with", tmp_path / "without")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_is_told_before_the_first_step(
    error: Exception,
    data: Data,
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(step, "batch_losses", broken)
    text = (
        r"out of memory at the largest random shape, 128x128 with 4 pictures at a time; "
        r"try --set train\.accumulate=2 .*--set augment\.shape_max=64, or a smaller --batch-size"
    )
    with pytest.raises(OutOfMemoryError, match=text):
        run_quietly(tiny_recipe(*SHAPES), data, tmp_path)


def test_other_errors_stay_what_they_are(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **named: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(step, "batch_losses", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run_quietly(tiny_recipe(*SHAPES), data, tmp_path)


# --- parts of a batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 9])
def test_a_batch_in_parts(parts: int) -> None:
    batch = step._blank(4, 32, 2)
    batch = batch._replace(image_ids=torch.arange(4), labels=torch.arange(8).view(4, 2))
    split = batch.split(parts)
    assert len(split) == min(parts, 4)
    assert all(len(part.labels) for part in split)
    for field, whole in zip(zip(*split, strict=True), batch, strict=True):
        assert torch.equal(torch.cat(field), whole)


def test_accumulating_is_the_same_step(
    data: Data, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for batch statistics, which are those of a part: with fixed ones it is the same run."""

    def fixed(self: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        assert self.running_mean is not None
        return x * self.weight[:, None, None] + self.bias[:, None, None]

    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", fixed)
    base = ("model.backbone=tiny", "optim.lr=0.0001", "train.epochs=2")
    for parts in (1, 2, 4):
        recipe = tiny_recipe(*base, f"train.accumulate={parts}")
        run_quietly(recipe, data, tmp_path / str(parts))
    expected = [record["loss"] for record in records(tmp_path / "1", "train")]
    for parts in (2, 4):
        found = [record["loss"] for record in records(tmp_path / str(parts), "train")]
        assert found == pytest.approx(expected, rel=1e-5)
        assert found != expected, "another order of summation"


# --- memory --------------------------------------------------------------------------------------

_RESIDENT = """
import sys, torch
from pathlib import Path
from triscale.heap import set_heap
from triscale.step import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

set_heap(map_from=1 << 20, trim_from=0)  # glibc's own thresholds move
if sys.argv[1] == "kept":
    keep_freed_memory(torch.device("cpu"))
before = resident()
for _ in range(4):
    held = [torch.zeros(40 << 18) for _ in range(2)]
    del held
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other ways")
def test_freed_memory_is_kept() -> None:
    """80 MiB that were freed stay with the process, and go back to the system otherwise."""
    found = {
        how: int(subprocess.check_output([sys.executable, "-c", _RESIDENT, how])) * PAGE
        for how in ("kept", "returned")
    }
    assert found["kept"] > 75 << 20, found
    assert found["returned"] < 45 << 20, found
