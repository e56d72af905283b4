"""`triscale recipes`: what is shipped."""

from __future__ import annotations

import argparse

HELP = "list the shipped recipes, or print one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one")


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    from triscale.recipes import recipe_names, recipe_text

    if arguments.name:
        print(recipe_text(arguments.name), end="")
        return
    for name in recipe_names():
        first = recipe_text(name).splitlines()[0].removeprefix("#").strip()
        print(f"{name:14} {first}")
