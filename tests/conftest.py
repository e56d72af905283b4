"""Fixtures that many tests share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from triscale.data.open import Data, open_dataset
from triscale.demo.scenes import write_scenes
from triscale.log import Narrator
from triscale.recipe import Recipe, load_recipe
from triscale.training import train

if TYPE_CHECKING:
    from tests.crashing import Crasher

# A network and a run that take a second: 7 steps in 3 epochs of 10 pictures.
TINY = (
    "train.epochs=3",
    "train.batch_size=4",
    "train.size=64",
    "train.workers=0",
    "train.device=cpu",
    "train.log_interval=1",
    "train.val_interval=1",
    "train.save_interval=0",
    "train.report=false",  # drawing takes longer than the run
    "model.backbone=mobilenet0.1",
    "decode.score_threshold=0.0001",  # such a network is sure of nothing
    "schedule.mode=constant",
    "schedule.warmup_epochs=0",
)


def set_words(*assignments: str) -> list[str]:
    """What sets these keys on a command line."""
    return [word for assignment in assignments for word in ("--set", assignment)]


SETS = set_words(*TINY)


@pytest.fixture(autouse=True)
def no_service_is_left() -> Iterator[None]:
    """Weights & Biases keeps a process for all runs of a program; other tests count processes."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference arrays, real data and weights beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder ../shared with reference arrays and real data beside the checkout")
    return folder


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Chromium; a module's own `BROWSER_FLAGS` are added."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    flags = ["--no-sandbox", *getattr(request.module, "BROWSER_FLAGS", ())]
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Arrays that the reference implementation produced."""
    return shared / "gluoncv" / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in one order, and test processes side by side that don't fight for the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def still_one_thread() -> Iterator[None]:
    """A `Detector` with a number of threads sets that of the process; the next test has one."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn VOC devkit: 10 pictures to train on, 4 to test on. Not to be changed: copy it."""
    root = tmp_path_factory.mktemp("drawn") / "VOCdevkit"
    write_scenes(root, num_train=10, num_test=4, size=(96, 128))
    return root


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., Recipe]:
    """The recipe of a run that takes a second; the function takes further overrides."""

    def make(*overrides: str) -> Recipe:
        return load_recipe("small", overrides=[*TINY, *overrides])

    return make


@pytest.fixture(scope="session")
def data(devkit: Path, tiny_recipe: Callable[..., Recipe]) -> Data:
    """The drawn set, opened."""
    return open_dataset(devkit, tiny_recipe().data)


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, data: Data, tiny_recipe: Callable[..., Recipe]
) -> Path:
    """The folder of a finished run of the tiny recipe, with a state kept after every step."""
    run = tmp_path_factory.mktemp("trained") / "run"
    recipe = tiny_recipe("checkpoint.every_steps=1", "checkpoint.keep=20", "train.save_interval=2")
    train(recipe, data, run, narrator=Narrator(enabled=False))
    return run


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small exported network, with its weights beside it. Not to be changed: copy it."""
    from tests.exporting import write_onnx

    return write_onnx(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="session")
def crasher() -> Iterator[Crasher]:
    """Starts commands that end at a chosen call; it has imported everything already."""
    from tests.crashing import Crasher

    with Crasher() as crasher:
        yield crasher


@pytest.fixture(scope="session")
def whole(crasher: Crasher, devkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `begin` that nothing disturbed."""
    from tests.running import begin

    run = tmp_path_factory.mktemp("whole") / "run"
    outcome = crasher.run_here(begin(devkit, run))
    assert outcome.code == 0, outcome.said
    return run
