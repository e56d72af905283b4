"""The [input] of a recipe on its way through training, header, validation, prediction and resume.

The pictures are 128 x 96, so a letterbox is another input than a stretched picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY, set_words
from tests.running import MakeRecipe, losses, run_quietly
from triscale.cli import main
from triscale.data.open import Data
from triscale.detections import Detections
from triscale.errors import UserError
from triscale.pixels import InputConfig
from triscale.predict import Detector
from triscale.runs import evaluate_weights
from triscale.training import Result
from triscale.weights.native import read_native, write_native

ANCHORS = "[[[40,30],[30,40]],[[20,15],[15,20]],[[9,7],[7,9]]]"
SETTINGS = (
    "input.normalise=unit",
    "input.fit=letterbox",
    f"model.anchors={ANCHORS}",
    "train.epochs=1",
)


@pytest.fixture(scope="module")
def result(data: Data, tiny_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("input") / "run"
    return run_quietly(tiny_recipe(*SETTINGS), data, folder)


def assert_same(a: Detections, b: Detections) -> None:
    assert len(a.scores) > 10
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-3, atol=1e-6)
    # rows of equal score may change places
    np.testing.assert_allclose(np.sort(a.boxes, 0), np.sort(b.boxes, 0), rtol=1e-3, atol=0.1)


def test_all_ways_to_the_detections_agree(
    result: Result, data: Data, devkit: Path, tmp_path: Path
) -> None:
    best = result.run / "best.safetensors"
    weights = read_native(best)
    assert weights.info.input == InputConfig("unit", "letterbox")
    assert [len(row) for row in weights.info.model.anchors] == [2, 2, 2]
    assert result.last is not None
    assert data.val is not None
    measured = evaluate_weights(best, devkit, device="cpu")
    detector = Detector(best, device="cpu")
    assert detector.engine.model.anchors == weights.info.model.anchors
    for i, path in enumerate(data.val.paths):
        alone = detector(path)
        assert_same(result.last.detections[i], alone)
        assert_same(measured.detections[i], alone)

    for other in (InputConfig("unit", "stretch"), InputConfig("imagenet", "letterbox")):
        path = tmp_path / "other.safetensors"
        write_native(path, weights._replace(info=weights.info._replace(input=other)))
        with pytest.raises(AssertionError):  # it does matter
            assert_same(Detector(path, device="cpu")(data.val.paths[0]), alone)
    changed = evaluate_weights(best, devkit, device="cpu", overrides=["input.fit=stretch"])
    with pytest.raises(AssertionError):
        assert_same(changed.detections[0], measured.detections[0])


def test_training_knows_the_normalisation_but_no_letterbox(
    result: Result, data: Data, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    for name, override in (("fit", "input.fit=stretch"), ("scale", "input.normalise=imagenet")):
        run_quietly(tiny_recipe(*SETTINGS, override), data, tmp_path / name)
    assert losses(tmp_path / "fit") == losses(result.run)
    assert losses(tmp_path / "scale")[0]["loss"] != losses(result.run)[0]["loss"]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("input.normalise=imagenet", r"\[input\] \(normalise \(from unit to imagenet\)\)"),
        ("input.fit=stretch", r"\[input\] \(fit \(from letterbox to stretch\)\)"),
        (f"model.anchors={ANCHORS.replace('9', '8')}", r"model\.anchors \(from .* to .*\)"),
    ],
)
def test_a_resumed_run_keeps_its_input(
    result: Result, data: Data, tiny_recipe: MakeRecipe, override: str, what: str
) -> None:
    recipe = tiny_recipe(*SETTINGS, override, "train.epochs=2")
    with pytest.raises(UserError, match=rf"{what} changed since the run began"):
        run_quietly(recipe, data, result.run, resume=True)


def test_init_takes_the_files_anchors_into_the_new_header(
    result: Result, devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = set_words(*TINY, "train.epochs=1")
    words = ["train", str(devkit), *sets, "--init", str(result.run), "--out", str(tmp_path / "new")]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "  adapted: the first convolution, from unit to imagenet input" in said
    assert "  adapted: the recipe, to the file's anchors" in said
    assert "  not kept: pictures by letterbox; --set input.fit=letterbox keeps it" in said
    info = read_native(tmp_path / "new" / "best.safetensors").info
    assert info.model.anchors == read_native(result.run / "best.safetensors").info.model.anchors
    assert info.input == InputConfig()


def test_the_references_metric_needs_its_fit(tiny_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"evaluate\.network_resolution: needs input\.fit=stretch"):
        tiny_recipe("input.fit=letterbox", "evaluate.network_resolution=true")
