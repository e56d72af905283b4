"""Recipes: everything that decides a training run, as one frozen value and one TOML file."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from triscale.assign import AssignConfig
from triscale.checkpoint import CheckpointConfig
from triscale.config import MAX_TOML_BYTES, apply_override, build, key_of, read_toml, to_dict
from triscale.data.augment import AugmentConfig
from triscale.data.options import DataConfig
from triscale.decode import DecodeConfig
from triscale.errors import UserError
from triscale.evaluation import EvalConfig
from triscale.files import read_regular
from triscale.loggers import LogConfig
from triscale.loss import LossConfig
from triscale.model.yolo import ModelConfig
from triscale.optim import OptimConfig
from triscale.pixels import InputConfig
from triscale.recipes import recipe_text
from triscale.schedule import ScheduleConfig
from triscale.weights.contents import require_size

_SEAL = "# sha256 of the lines above: "


@dataclass(frozen=True)
class TrainConfig:
    """The `[train]` section."""

    epochs: int = 200
    batch_size: int = 64  # over all processes
    size: int = 416  # side of the input in validation, and in training without random shapes
    seed: int = 233
    workers: int = 4  # data loading processes per device; 0: none
    device: str = "auto"  # cpu | cuda | cuda:N | auto
    # of the network, the loss is always fp32; auto: bf16 where a look at the start finds it faster
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    compile: bool = False  # the network goes through PyTorch's compiler, once for each shape
    syncbn: bool = False  # batch statistics over all processes
    accumulate: int = 1  # parts in which a process's share of a batch goes through the network
    start_epoch: int = 0  # begin here, with the weights of init (a resumed run needs no such thing)
    init: str = ""  # weights file to start from
    log_interval: int = 100  # steps
    val_interval: int = 1  # epochs; 0: never
    save_interval: int = 10  # epochs; 0: only the best
    pictures: int = 8  # validation pictures drawn after each validation
    report: bool = True  # report.html and what it is made of are written after each validation

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_interval"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("seed", "workers", "start_epoch", "val_interval", "save_interval", "pictures"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name}: expected at least 0, got {getattr(self, name)}")
        if self.start_epoch >= self.epochs:
            raise UserError(
                f"train.start_epoch: {self.start_epoch} is not before the end, {self.epochs}"
            )
        if self.seed >= 2**63:
            raise UserError(f"train.seed: expected less than 2**63, got {self.seed}")
        require_size(self.size, source="train.size")  # else the weights couldn't be used


@dataclass(frozen=True)
class Recipe:
    """All sections of a recipe; each dataclass belongs to the module that uses it."""

    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    assign: AssignConfig = field(default_factory=AssignConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        self.evaluate.require_fit(self.input)
        if self.assign.neighbours and self.model.scale_x_y < 2:
            raise UserError(
                "assign.neighbours: predictions reach an object in the next cell only with "
                f"model.scale_x_y of 2 or more, found {self.model.scale_x_y}"
            )


def load_recipe(name: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or TOML file, changed by `section.key=value` texts, the last one winning.

    Raises UserError for an unknown recipe, section or key (naming the nearest) or a wrong value.
    """
    path = Path(name)
    shipped = not path.suffix and not path.is_file()
    table = tomllib.loads(recipe_text(str(name))) if shipped else read_toml(path)
    return make_recipe(table, overrides=overrides, source="" if shipped else str(path))


def make_recipe(table: dict[str, Any], *, overrides: Sequence[str] = (), source: str) -> Recipe:
    """A recipe from a table as `to_dict` gives it, changed by `section.key=value` texts."""
    try:
        recipe = build(Recipe, table, where=source)
    except UserError as error:  # its own mistakes name it
        if str(error).startswith(source):
            raise
        raise UserError(f"{source}: {error}") from error
    if not overrides:
        return recipe
    for assignment in overrides:
        apply_override(table, assignment)
    changed = build(Recipe, table, where="")
    given = set(map(key_of, overrides))
    if changed.optim.name != recipe.optim.name and not given >= {"optim.lr", "optim.weight_decay"}:
        raise UserError(
            f"optim.name: the recipe's optim.lr and optim.weight_decay are those of "
            f"{recipe.optim.name}; give both for {changed.optim.name} too"
        )
    return changed


def require_effect(recipe: Recipe) -> None:
    """UserError if a key asks for something that another one makes impossible."""
    train, schedule, augment = recipe.train, recipe.schedule, recipe.augment
    usual = OptimConfig().square_momentum
    for silent, key, why in (
        (
            augment.mosaic and augment.mosaic_off_epochs >= train.epochs,
            "augment.mosaic",
            f"augment.mosaic_off_epochs is {augment.mosaic_off_epochs} of {train.epochs} epochs; "
            f"give less (--set augment.mosaic_off_epochs={train.epochs // 2})",
        ),
        (
            recipe.assign.dynamic and not (recipe.assign.ratio or recipe.assign.neighbours),
            "assign.dynamic",
            "it chooses among what assign.ratio and assign.neighbours offer, and both are off",
        ),
        (
            (schedule.warmup_momentum or schedule.warmup_bias_lr) and not schedule.warmup_epochs,
            "schedule.warmup_momentum, warmup_bias_lr",
            "schedule.warmup_epochs is 0",
        ),
        (
            schedule.frozen_epochs >= train.epochs,
            "schedule.frozen_epochs",
            f"the backbone would never move in {train.epochs} epochs; give less "
            f"(--set schedule.frozen_epochs={train.epochs // 2})",
        ),
        (
            recipe.loss.iou != LossConfig().iou and not recipe.loss.iou_gain,
            "loss.iou",
            "loss.iou_gain is 0",
        ),
        (
            recipe.optim.name == "sgd" and recipe.optim.square_momentum != usual,
            "optim.square_momentum",
            "it is of adamw, and optim.name is sgd",
        ),
    ):
        if silent:
            raise UserError(f"{key}: has no effect: {why}")
    sides = {train.size}
    if augment.random_shape:
        sides = set(range(augment.shape_min, augment.shape_max + 1, augment.shape_step))
    odd = sorted(side for side in sides if side % 32)
    by_overlap = recipe.loss.iou_gain or recipe.loss.objectness_target == "iou"
    if odd and (by_overlap or recipe.assign.dynamic or recipe.model.scale_x_y != 1):
        # the reference's targets are proportional to the map, what is decoded goes by its stride
        raise UserError(
            f"train.size, augment.shape_*: expected sizes that 32 divides, found {odd[0]}: with "
            "an iou term, assign.dynamic or model.scale_x_y the targets wouldn't be what is decoded"
        )


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML, every key written out, with a SHA-256 of itself in the last line."""
    text = tomli_w.dumps(to_dict(recipe))
    return f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def require_unchanged(path: Path) -> None:
    """UserError if a file that `dump_recipe` filled was changed since.

    A flipped bit may leave valid TOML, and another run.
    """
    text, _, seal = read_regular(path, limit=MAX_TOML_BYTES).partition(_SEAL.encode())
    if hashlib.sha256(text).hexdigest().encode() != seal.strip():
        raise UserError(
            f"{path}: not as a run wrote it (its SHA-256 isn't that of its last line); changes are "
            "made with --set section.key=value, and a run can go on without this file: its states "
            "hold the recipe too"
        )
