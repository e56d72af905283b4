"""The recipes that come with the package, as texts; `triscale.recipe` makes values of them."""

from __future__ import annotations

from importlib import resources

from triscale.config import nearest
from triscale.errors import UserError


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML text of a shipped recipe, with its header; UserError if there is none."""
    if name not in recipe_names():
        raise UserError(f"no recipe or recipe file '{name}'{nearest(name, recipe_names())}")
    return resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8")
