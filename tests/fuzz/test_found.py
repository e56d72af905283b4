"""What fuzzing found, in readers whose own tests are elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.readers import make_coco, make_data_file, make_recipe, make_state, make_voc
from tests.fuzz.watching import watched
from triscale.checkpoint import load_state
from triscale.data.open import open_dataset
from triscale.data.options import DataConfig
from triscale.errors import UserError
from triscale.recipe import load_recipe

SKIP = DataConfig(skip_bad=True)


@pytest.mark.parametrize("area", [1e300, float("inf"), float("nan")])
def test_absurd_areas(tmp_path: Path, area: float) -> None:
    """Each is one line of the report: no warning, no infinite area in the index."""
    make_coco(tmp_path)
    _change_annotation(tmp_path, "area", area)
    with watched():
        data = open_dataset(tmp_path, SKIP, splits=("val",))
    assert len(data.skipped) == 1


def _change_annotation(root: Path, key: str, value: Any) -> None:
    path = root / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0][key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["a.jpg", "folder/a.jpg"])
def test_coco_pictures_outside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make_coco(root)
    (root / "images/a.jpg").rename(tmp_path / "a.jpg")
    if name == "a.jpg":
        (root / "images/a.jpg").symlink_to(tmp_path / "a.jpg")
    else:
        (root / "images/folder").symlink_to(tmp_path)
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}.json"
        path.write_text(path.read_text().replace('"a.jpg"', json.dumps(name)))
    with pytest.raises(UserError, match=r"a\.jpg: lies outside of the data set .*data\.outside"):
        open_dataset(root, SKIP)


def test_coco_annotations_that_are_a_pipe(tmp_path: Path) -> None:
    make_coco(tmp_path)
    path = tmp_path / "annotations/instances_val.json"
    path.unlink()
    os.mkfifo(path)
    with watched(seconds=1), pytest.raises(UserError, match=r"instances_val\.json: can't be read"):
        open_dataset(tmp_path, SKIP)


def test_a_root_that_is_too_long(tmp_path: Path) -> None:
    make_data_file(tmp_path)
    path = tmp_path / "data.toml"
    path.write_text(path.read_text().replace('"voc"', '""').replace('"."', f'"{"x" * 5000}"'))
    with pytest.raises(UserError, match=r"data\.toml|no such folder"):
        open_dataset(path, SKIP)


def test_an_empty_split_names_its_folder(tmp_path: Path) -> None:
    make_voc(tmp_path)
    (tmp_path / "ImageSets/Main/test.txt").write_text("")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path, SKIP)
    assert str(tmp_path) in str(caught.value)


def test_a_value_of_a_recipe_names_its_file(tmp_path: Path) -> None:
    make_recipe(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(path.read_text().replace("batch_size = 64", "batch_size = 0"))
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def _with(key: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        content[key] = value
        path.write_text(json.dumps(content))

    return change


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".json", lambda path: path.write_text("[" * 100_000)),
        (".json", _with("step", -1)),
        (".json", _with("step", float("inf"))),
        (".json", _with("step", 2**63)),
        (".json", _pipe),
        (".safetensors", _pipe),
    ],
)
def test_a_damaged_state(tmp_path: Path, suffix: str, damage: Callable[[Path], None]) -> None:
    """The state before it is taken, and one line says so."""
    make_state(tmp_path)
    damage(tmp_path / f"last/step-00000007{suffix}")
    with watched(seconds=1):
        state, damaged = load_state(tmp_path / "last")
    assert (state.step, len(damaged)) == (3, 1)
