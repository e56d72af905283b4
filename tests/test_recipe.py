"""Recipes: the shipped ones, their way to a file and back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triscale.errors import UserError
from triscale.model.yolo import build_model
from triscale.recipe import Recipe, dump_recipe, load_recipe, require_effect
from triscale.recipes import recipe_names, recipe_text

NAMES = ["bof", "demo", "finetune", "gluoncv-coco", "gluoncv-voc", "modern", "small"]


def test_shipped() -> None:
    assert recipe_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_builds_and_returns(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    model = build_model(recipe.model, 3, generator=torch.Generator())
    assert model.num_classes == 3
    assert len(model.anchors) == len(model.head.outputs)
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert recipe_text(name).startswith("#"), "a recipe opens with what it is for"


def test_gluoncv_voc_is_the_published_command() -> None:
    """The flags of the model zoo's darknet53_voc log: scripts/detection/yolo in GluonCV."""
    recipe = load_recipe("gluoncv-voc")
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.seed) == (200, 64, 233)
    assert (recipe.optim.lr, recipe.optim.momentum, recipe.optim.weight_decay) == (1e-3, 0.9, 5e-4)
    assert (recipe.schedule.mode, recipe.schedule.decay_epochs) == ("step", (160, 180))
    assert (recipe.schedule.warmup_epochs, recipe.train.syncbn) == (4, True)
    assert not recipe.augment.mixup
    assert not recipe.loss.label_smooth


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    assert load_recipe(tmp_path / "empty.toml") == Recipe()


def test_overrides_the_last_one_wins() -> None:
    recipe = load_recipe(
        "small", overrides=["train.epochs=7", "augment.mixup=true", "train.epochs=9"]
    )
    assert recipe.train.epochs == 9
    assert recipe.augment.mixup
    assert recipe.optim == load_recipe("small").optim


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["trian.epochs=1"], "unknown key 'trian'; did you mean 'train'?"),
        (["train.epoch=1"], "train: unknown key 'epoch'; did you mean 'epochs'?"),
        (["train.epochs=many"], "train.epochs: expected a whole number, got 'many'"),
        (["train.epochs=true"], "train.epochs: expected a whole number, got True"),
        (["train.epochs=0"], "train.epochs: expected at least 1, got 0"),
        (["train.size=31"], "train.size: expected a size from 32 to 8192 pixels, found 31"),
        (["train.seed=-1"], "train.seed: expected at least 0, got -1"),
        (["train.precision=fp8"], "train.precision: expected one of 'fp32', 'bf16', 'fp16'"),
        (["optim.lr=nan"], "optim.lr: expected a positive number, got nan"),
        (["optim.lr=inf"], "optim.lr: expected a positive number, got inf"),
        (["optim.lr=1e308"], "optim.lr: expected at most 1e+12, got 1e+308"),
        (["optim.backbone_lr=1e13"], "optim.backbone_lr: expected at most 1e+12"),
        (["schedule.warmup_bias_lr=1e308"], "schedule.warmup_bias_lr: expected at most 1e+12"),
        (["optim.weight_decay=nan"], "optim.weight_decay: expected 0 or a positive number"),
        (["schedule.target_lr=nan"], "schedule.target_lr: expected 0 or a positive number"),
        (["augment.flip=nan"], "augment.flip: expected a probability, got nan"),
        (["loss.ignore_iou=nan"], "loss.ignore_iou: expected a number above 0"),
        (["model.objectness_prior=nan"], "model.objectness_prior: expected at least 0"),
        (["decode.score_threshold=nan"], "decode.score_threshold: expected 0 <= x < 1"),
        (["evaluate.iou=nan"], "evaluate.iou: expected between 0 and 1, got nan"),
        (["checkpoint.every_minutes=nan"], "checkpoint: expected keep >= 1"),
        (["checkpoint.keep=0"], "checkpoint: expected keep >= 1"),
    ],
)
def test_refused(overrides: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("small", overrides=overrides)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([], ""),
        (["augment.mosaic=0.5", "augment.mosaic_off_epochs=10"], ""),
        (
            ["augment.mosaic=0.5", "train.epochs=5"],
            "augment.mosaic: has no effect: augment.mosaic_off_epochs is 10 of 5 epochs; give less "
            "(--set augment.mosaic_off_epochs=2)",
        ),
        (["assign.dynamic=5"], "assign.dynamic: has no effect: it chooses among"),
        (["schedule.warmup_epochs=0", "schedule.warmup_momentum=0.5"], "schedule.warmup_momentum"),
        (["schedule.warmup_epochs=0", "schedule.warmup_bias_lr=0.5"], "schedule.warmup_momentum"),
        (
            ["schedule.frozen_epochs=20"],
            "schedule.frozen_epochs: has no effect: the backbone would never move in 20 epochs; "
            "give less (--set schedule.frozen_epochs=10)",
        ),
        (["loss.iou=giou"], "loss.iou: has no effect: loss.iou_gain is 0"),
        (["optim.square_momentum=0.9"], "optim.square_momentum: has no effect: it is of adamw"),
        (["train.size=100"], ""),
        (["train.size=100", "loss.iou_gain=1"], "train.size, augment.shape_*: expected sizes"),
        (["train.size=100", "model.scale_x_y=2"], "train.size, augment.shape_*: expected sizes"),
        (
            ["augment.random_shape=true", "augment.shape_step=8", "loss.iou_gain=1"],
            "train.size, augment.shape_*: expected sizes that 32 divides, found 328",
        ),
    ],
)
def test_what_has_no_effect(overrides: list[str], text: str) -> None:
    recipe = load_recipe("small", overrides=overrides)
    if not text:
        require_effect(recipe)
        return
    with pytest.raises(UserError) as caught:
        require_effect(recipe)
    assert str(caught.value).startswith(text)


def test_another_optimiser_wants_its_own_rates() -> None:
    with pytest.raises(UserError, match=r"^optim.name: .* are those of sgd; give both for adamw"):
        load_recipe("small", overrides=["optim.name=adamw", "optim.lr=0.001"])
    given = ["optim.name=adamw", "optim.lr=0.001", "optim.weight_decay=0.05"]
    assert load_recipe("small", overrides=given).optim.name == "adamw"
    assert load_recipe("modern", overrides=["optim.name=adamw"]).optim.lr == 0.003


def test_a_mistake_in_a_file_names_it_even_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[trian]\nepochs = 1\n")
    for overrides in ([], ["train.size=64"]):
        with pytest.raises(UserError, match=rf"^{path}: unknown key 'trian'"):
            load_recipe(path, overrides=overrides)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("smal", "no recipe or recipe file 'smal'; did you mean 'small'?"),
        ("nowhere/mine.toml", "nowhere/mine.toml: can't be read"),
    ],
)
def test_no_such_recipe(name: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(name)
    assert str(caught.value).startswith(text)
