"""What the commands that look ahead share with `triscale train`: its recipe and its choices."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from triscale.commands.options import add_set
from triscale.commands.train import DEFAULT_RECIPE, INIT_RECIPE
from triscale.config import key_of, quoted

if TYPE_CHECKING:
    from triscale.data.open import Data
    from triscale.recipe import Recipe


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """DATA and the flags that decide about the recipe."""
    parser.add_argument("data", metavar="DATA", help="folder or file of the data set")
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help=f"use it as it is (default: {DEFAULT_RECIPE}, fitted as `triscale train` does)",
    )
    parser.add_argument("--size", metavar="N", help="side of the square network input, in pixels")
    parser.add_argument("--seed", metavar="N")
    add_set(parser)


def open_as_train(
    arguments: argparse.Namespace,
    *,
    init: str | None = None,
    kept: Collection[str] = (),
    say: Callable[[str], None],
) -> tuple[Recipe, Data]:
    """The recipe and the data that `triscale train` would have; keys in `kept` aren't chosen."""
    from triscale.recipe import load_recipe, require_effect
    from triscale.runs import open_and_fit

    flags = {"train.size": arguments.size, "train.seed": arguments.seed}
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    if init:
        overrides.append(quoted("train.init", init))
    overrides += arguments.overrides
    name = arguments.recipe or (INIT_RECIPE if init else DEFAULT_RECIPE)
    recipe, data = open_and_fit(
        load_recipe(name, overrides=[*overrides, quoted("data.path", arguments.data)]),
        base=None if arguments.recipe else load_recipe(name),
        given={*map(key_of, overrides), *kept},
        say=say,
    )
    require_effect(recipe)
    return recipe, data
