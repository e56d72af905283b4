"""`triscale preview`: what the network will see in training."""

from __future__ import annotations

import argparse
from pathlib import Path

from triscale.commands.as_train import add_recipe, open_as_train
from triscale.commands.options import table

HELP = "show what training will see: samples, and the cell and anchor of each object"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    add_recipe(parser)
    parser.add_argument("--init", metavar="WEIGHTS", help="weights to start from, as in train")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="samples (default: 16)")
    parser.add_argument("--epoch", type=int, default=0, metavar="E", help="the first one is 0")
    parser.add_argument("--out", default="preview", metavar="DIR", help="default: preview")


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    from triscale.log import Narrator
    from triscale.prepare import training_index
    from triscale.preview.figures import advice, figures_of
    from triscale.preview.files import write_preview
    from triscale.preview.seen import seen_in_training
    from triscale.runs import initial_network

    out, epoch, count = Path(arguments.out), arguments.epoch, arguments.count
    with Narrator() as narrator:
        recipe, data = open_as_train(arguments, init=arguments.init, say=narrator.say)
        model, recipe = initial_network(recipe, data.classes, say=narrator.say)
        index = training_index(recipe, data)
        train, notes = recipe.train, list[str]()
        if recipe.assign.dynamic:
            notes.append(
                "assign.dynamic lets the network choose among its predictions. Here the network "
                "chooses with which training begins; later on it chooses otherwise."
            )
        narrator.begin("drawing", count)
        samples = seen_in_training(recipe, index, model, epoch=epoch, count=count)
        seen = write_preview(
            out,
            samples,
            title=f"Preview of {data.root.absolute().name}",
            lead=f"What training with {recipe.model.backbone} sees from epoch {epoch} of "
            f"{train.epochs} on, with seed {train.seed}",
            classes=data.classes,
            ids=index.ids,
            anchors=model.anchors,
            notes=notes,
            on_sample=narrator.advance,
        )
    table(("what", "figure", "of"), figures_of(seen))
    for line in [*advice(seen), *notes]:
        print(line)
    print(f"{len(seen)} samples in {out}; look at {out / 'preview.html'} or {out / 'sheet.png'}")
