"""What can be said on the command line of `triscale`."""

from __future__ import annotations

import argparse

from triscale import __version__

DEFAULT_RECIPE, INIT_RECIPE = "modern", "finetune"  # what is fitted where no recipe is named


def make_parser() -> argparse.ArgumentParser:
    """The parser of `triscale`; `command` in its result is the command's name."""
    parser = argparse.ArgumentParser(
        prog="triscale", description="Train, evaluate and use YOLOv3-family object detectors."
    )
    parser.add_argument("--version", action="version", version=f"triscale {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    train = commands.add_parser("train", help="train a detector, or go on with a run")
    train.add_argument("data", nargs="?", metavar="DATA", help="folder or file of the data set")
    train.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="use it as it is (default: "
        f"{DEFAULT_RECIPE}, with --init {INIT_RECIPE}, fitted to the data and the machine)",
    )
    train.add_argument("--out", metavar="DIR", help="run folder (default: runs/DATA-RECIPE)")
    train.add_argument("--init", metavar="WEIGHTS", help="weights to start from")
    train.add_argument("--resume", metavar="RUN", help="go on with a run where it stopped")
    train.add_argument(
        "--auto-resume", action="store_true", help="go on with the run in --out if there is one"
    )
    train.add_argument("--epochs", metavar="N")
    train.add_argument("--minutes", metavar="N", help="as many epochs as fit into so much time")
    train.add_argument("--batch-size", metavar="N")
    train.add_argument("--size", metavar="N", help="side of the square network input, in pixels")
    train.add_argument("--device", metavar="D", help="cpu, cuda, cuda:N or auto")
    train.add_argument("--workers", metavar="N", help="data loading processes")
    train.add_argument("--seed", metavar="N")
    _add_set(train)

    evaluate = commands.add_parser("eval", help="measure weights on a data set")
    evaluate.add_argument("weights", metavar="WEIGHTS_OR_RUN")
    evaluate.add_argument("data", metavar="DATA")
    evaluate.add_argument("--split", metavar="S", help="default: the validation split")
    evaluate.add_argument("--size", type=int, metavar="N", help="default: as the weights say")
    evaluate.add_argument("--metric", choices=["voc07", "voc", "coco"])
    evaluate.add_argument("--batch-size", type=int, default=8, metavar="N")
    evaluate.add_argument("--workers", type=int, default=0, metavar="N")
    evaluate.add_argument("--device", default="auto", metavar="D")
    _add_precision(evaluate)
    evaluate.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_set(evaluate)

    predict = commands.add_parser("predict", help="find objects in pictures")
    predict.add_argument("weights", metavar="WEIGHTS_OR_RUN")
    predict.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, patterns")
    predict.add_argument("--out", metavar="DIR", help="for drawn pictures (default: predictions)")
    predict.add_argument("--score", type=float, default=0.3, metavar="T", help="least score shown")
    predict.add_argument("--device", default="auto", metavar="D")
    _add_precision(predict)
    predict.add_argument(
        "--json", action="store_true", help="one JSON object per picture on stdout"
    )

    convert = commands.add_parser(
        "convert", help="weights from one format to another; the names' ends say which"
    )
    convert.add_argument("source", metavar="IN", help=".params, .weights, .npz, .safetensors")
    convert.add_argument("target", metavar="OUT", help=".params, .weights or .safetensors")
    convert.add_argument("--cfg", metavar="FILE", help="Darknet's description (default: beside IN)")
    convert.add_argument("--classes", metavar="FILE", help="class names, one on each line")
    convert.add_argument("--size", type=int, metavar="N", help="side of the network input")
    convert.add_argument("--fit", choices=["stretch", "letterbox"], help="pictures to the input")
    convert.add_argument(
        "--force", action="store_true", help="replace OUT (and its .cfg and .names)"
    )

    download = commands.add_parser("download", help="get weights that GluonCV published")
    download.add_argument("name", metavar="NAME", help="as in yolo3_darknet53_coco, or: list")
    download.add_argument("--mirror", metavar="URL", help="a copy of GluonCV's repository")
    download.add_argument("--to", metavar="FILE", help="also write it here, in any format")

    recipes = commands.add_parser("recipes", help="list the shipped recipes, or print one")
    recipes.add_argument("name", nargs="?", metavar="NAME")
    return parser


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "auto"],
        default="fp32",
        help="what the network computes in; auto: bf16 if it is faster here (default: fp32)",
    )


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="section.key=value",
        help="change one key of the recipe; may be given often",
    )
