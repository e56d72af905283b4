"""`triscale anchors`: the network's anchors and others by k-means, against a data set's boxes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from triscale.commands.as_train import add_recipe, open_as_train
from triscale.commands.options import require_new, table
from triscale.errors import UserError
from triscale.packages import require_packages

HELP = "compare the network's anchors with others that fit the data, and write a recipe"
_SETS = ("as they are", "by k-means")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    add_recipe(parser)
    parser.add_argument("--number", type=int, metavar="N", help="anchors (default: the network's)")
    parser.add_argument("--write", metavar="FILE", help="write a recipe with the new ones (TOML)")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--out", metavar="DIR", help="write a plot, anchors.png, into this folder")


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    target = Path(arguments.write) if arguments.write else None
    if target and not arguments.force:
        require_new([target], hint="; --force replaces it")
    if arguments.out:
        require_packages("torch", "matplotlib", purpose="triscale anchors --out")
    import numpy as np
    import tomli_w

    from triscale.anchor_choice import class_rows, objection, overall_rows, propose, shapes_of
    from triscale.anchor_plot import write_plot
    from triscale.anchors import STRIDES
    from triscale.config import to_dict
    from triscale.files import write_atomically
    from triscale.kmeans import flat
    from triscale.log import Narrator
    from triscale.model.yolo import skeleton
    from triscale.prepare import training_index

    recipe, data = open_as_train(arguments, kept=["model.anchors"], say=Narrator().say)
    index, side = training_index(recipe, data), recipe.train.size
    usual = skeleton(recipe.model, len(data.classes)).anchors
    shapes, strides = shapes_of(index) * side, len(usual)
    number = len(flat(usual)) if arguments.number is None else arguments.number
    if number < 1 or number % strides:
        raise UserError(
            f"--number: {recipe.model.backbone} has {strides} strides with equally many anchors "
            f"each; expected a multiple of {strides}, got {number}"
        )
    if len(shapes) < number:
        raise UserError(
            f"{data.root}: expected at least {number} boxes in {index.name}, one for each anchor, "
            f"found {len(shapes)}"
        )
    rng = np.random.default_rng(recipe.train.seed)
    found = propose(shapes, number, strides, rng=rng)

    print(f"\n{len(shapes)} boxes of {index.name} at {side} pixels")
    if recipe.augment.random_shape:
        low, high = recipe.augment.shape_min, recipe.augment.shape_max
        print(f"(random shapes from {low} to {high} in training: boxes grow, anchors don't)")
    rows = zip(STRIDES, usual, found, strict=False)
    table(("stride", *_SETS), [(str(s), _shown(old), _shown(new)) for s, old, new in rows])
    print()
    sets = (usual, found)
    table(("", *_SETS), overall_rows(shapes, sets))
    print()
    header = ("overlap one by half", "boxes", *_SETS)
    table(header, class_rows(shapes, index.labels, data.classes, sets=sets))
    print()
    against = objection(shapes, flat(usual), flat(found))
    if against:
        print(f"The new ones aren't worth it: {against}.")
    elif arguments.recipe or arguments.number:
        print("The new ones are worth it: --write FILE makes a recipe of them.")
    else:
        print("The new ones are worth it: `triscale train` takes such by itself without --recipe.")
    if arguments.out:
        plot = Path(arguments.out) / "anchors.png"
        write_plot(plot, shapes, usual, found, rng=rng)
        print(f"wrote {plot}")
    if target:
        chosen = replace(
            recipe,
            model=replace(recipe.model, anchors=found),
            data=replace(recipe.data, path=""),  # named when training begins
        )
        head = f"# {number} anchors by k-means on {len(shapes)} boxes of {index.name}, at {side}\n"
        write_atomically(target, (head + tomli_w.dumps(to_dict(chosen))).encode())
        print(f"wrote {target}; use it with: triscale train {arguments.data} --recipe {target}")


def _shown(row: Sequence[tuple[float, float]]) -> str:
    return "  ".join(f"{width:g}x{height:g}" for width, height in row)
