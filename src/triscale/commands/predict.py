"""`triscale predict`: detections as pictures, lines or JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triscale.commands.options import add_precision, table
from triscale.errors import UserError

HELP = "find objects in pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command can be told."""
    parser.add_argument("weights", metavar="WEIGHTS_OR_RUN")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, patterns")
    parser.add_argument("--out", metavar="DIR", help="for drawn pictures (default: predictions)")
    parser.add_argument("--score", type=float, default=0.3, metavar="T", help="least score shown")
    parser.add_argument("--device", default="auto", metavar="D")
    add_precision(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per picture on stdout")


def run(arguments: argparse.Namespace) -> None:
    """Do what the arguments say."""
    if not 0 <= arguments.score <= 1:
        raise UserError(f"--score: expected between 0 and 1, got {arguments.score}")
    from triscale.data.pictures import read_picture
    from triscale.draw import draw_detections, write_picture
    from triscale.predict import Detector, find_pictures

    pictures = find_pictures(arguments.sources)
    detector = Detector(arguments.weights, device=arguments.device, precision=arguments.precision)
    out = Path(arguments.out or "predictions") if arguments.out or not arguments.json else None
    if out:
        out.mkdir(parents=True, exist_ok=True)
    names = _unique_names(pictures)
    if out:
        targets = {(out / name).resolve() for name in names}
        for path in pictures:
            if path.resolve() in targets:
                raise UserError(
                    f"{path}: would be replaced; choose another folder than --out {out}"
                )
    rows: list[tuple[str, ...]] = []
    for path, name in zip(pictures, names, strict=True):
        image = read_picture(path)
        found = detector(image)
        shown = [k for k, s in enumerate(found.scores.tolist()) if s >= arguments.score]
        if out:
            drawn = draw_detections(
                image, found, classes=detector.classes, min_score=arguments.score
            )
            write_picture(out / name, drawn)
        objects: list[dict[str, Any]] = [
            {
                "label": detector.classes[int(found.labels[k])],
                "score": round(float(found.scores[k]), 6),
                "box": [round(v, 2) for v in found.boxes[k].tolist()],
            }
            for k in shown
        ]
        if arguments.json:
            size = [image.shape[1], image.shape[0]]
            print(json.dumps({"image": str(path), "size": size, "detections": objects}), flush=True)
        else:
            rows += [
                (str(path), o["label"], f"{o['score']:.3f}", " ".join(f"{v:.0f}" for v in o["box"]))
                for o in objects
            ] or [(str(path), "-", "", "")]
    if not arguments.json:
        table(("picture", "label", "score", "x1 y1 x2 y2"), rows)
        print(f"{len(pictures)} drawn pictures in {out}")


def _unique_names(pictures: Sequence[Path]) -> list[str]:
    """A file name per picture; pictures of one name in several folders get a number."""
    taken: set[str] = set()
    names: list[str] = []
    for path in pictures:
        suffix = path.suffix if path.suffix.lower() in (".jpg", ".jpeg", ".png") else ".jpg"
        name, number = f"{path.stem}{suffix}", 1
        while name.casefold() in taken:
            number += 1
            name = f"{path.stem}-{number}{suffix}"
        taken.add(name.casefold())
        names.append(name)
    return names
