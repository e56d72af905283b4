"""Recipes: everything that decides a training run, as one frozen value and one TOML file."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from triscale.checkpoint import CheckpointConfig
from triscale.config import MAX_TOML_BYTES, apply_override, build, read_toml, to_dict
from triscale.data.augment import AugmentConfig
from triscale.data.options import DataConfig
from triscale.decode import DecodeConfig
from triscale.errors import UserError
from triscale.evaluation import EvalConfig
from triscale.files import read_regular
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
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        self.evaluate.require_fit(self.input)


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
    return build(Recipe, table, where="")


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
