"""The command line: arguments in, one clear line out when something is wrong.

Exit codes: 0 done, 1 a bug (with its traceback), 2 a mistake in the input, 3 out of memory, 4
another process of the run is gone, 75 stopped on request with everything saved (EX_TEMPFAIL of
sysexits.h: call again), 130 stopped by Ctrl-C. Nothing heavy is imported before the arguments are
known to be right.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from triscale.arguments import DEFAULT_RECIPE, INIT_RECIPE, make_parser
from triscale.errors import OutOfMemoryError, ProcessLostError, UserError, ran_out_of_memory
from triscale.interrupt import Interrupted, leave_undisturbed, leaving_at_once

_YEAR = 525_600  # minutes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return the exit code."""
    arguments = make_parser().parse_args(argv)
    return guarded(lambda: _COMMANDS[arguments.command](arguments))


def guarded(run: Callable[[], None]) -> int:
    """Call `run`; a mistake of the user's becomes one line on stderr and an exit code."""
    try:
        run()
        if sys.stdout is not None:  # closed: `>&-`
            sys.stdout.flush()  # here, where a closed pipe can still be caught
    except UserError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:  # `triscale ... | head`: nobody is listening any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Interrupted as error:
        leave_undisturbed()  # so that the exit code arrives
        return _fail(str(error), 75)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except ProcessLostError as error:
        return _fail(str(error), 4)
    except OutOfMemoryError as error:
        return _fail(str(error), 3)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}", 2)
    except Exception as error:
        # torch raises it wherever the process happens to be
        if str(error).startswith("DataLoader worker"):
            return _fail(f"a data loading process died: {str(error).splitlines()[0]}", 2)
        if not ran_out_of_memory(error):
            raise
        return _fail(
            "out of memory; try a smaller --batch-size or --size, or --set "
            "augment.shape_max=... for smaller random shapes",
            3,
        )
    return 0


def _fail(text: str, code: int) -> int:
    if text:
        print(f"triscale: {'' if code in (75, 130) else 'error: '}{text}", file=sys.stderr)
    return code


def _train(arguments: argparse.Namespace) -> None:
    with leaving_at_once():
        _start_or_resume(arguments)


def _start_or_resume(arguments: argparse.Namespace) -> None:
    began = time.perf_counter()  # before the heavy imports
    flags = {
        "train.epochs": arguments.epochs,
        "train.batch_size": arguments.batch_size,
        "train.size": arguments.size,
        "train.device": arguments.device,
        "train.workers": arguments.workers,
        "train.seed": arguments.seed,
    }
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    if arguments.init:  # quoted: a path may look like a number, or hold quotes itself
        overrides.append(f"train.init={json.dumps(arguments.init, ensure_ascii=False)}")
    overrides += arguments.overrides
    if arguments.out == "":  # an unset variable of a script
        raise UserError("--out: expected a folder, got an empty text")
    if arguments.resume:
        given = ("data", "recipe", "out", "init", "batch_size", "seed", "auto_resume", "minutes")
        for name in given:
            if getattr(arguments, name) not in (None, False):
                raise UserError(
                    f"--resume goes on with a run as it is: {name} can't be given again"
                )
        from triscale.runs import resume_run

        resume_run(Path(arguments.resume), overrides=overrides)
        return
    if arguments.data is None:
        raise UserError("train: name the data set (DATA), or a run to go on with (--resume RUN)")
    keys = frozenset(text.partition("=")[0].strip() for text in overrides)
    minutes = _minutes(arguments.minutes, keys)
    from triscale.recipe import load_recipe
    from triscale.runs import Wishes, start_or_resume, start_run

    recipe = arguments.recipe or (INIT_RECIPE if arguments.init else DEFAULT_RECIPE)
    base = None if arguments.recipe else load_recipe(recipe)
    wishes = Wishes(base, given=keys, minutes=minutes, since=began)
    if arguments.auto_resume:
        if arguments.out is None:
            raise UserError("--auto-resume: name the run folder with --out")
        out = Path(arguments.out)
        start_or_resume(Path(arguments.data), recipe, out=out, overrides=overrides, wishes=wishes)
        return
    start_run(
        Path(arguments.data),
        load_recipe(recipe, overrides=overrides),
        name=Path(recipe).stem,
        out=Path(arguments.out) if arguments.out else None,
        wishes=wishes,
    )


def _minutes(text: str | None, keys: Collection[str]) -> float | None:
    if text is None:
        return None
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= _YEAR:
        raise UserError(f"--minutes: expected a number above 0 and up to {_YEAR:,}, got '{text}'")
    if "train.epochs" in keys:
        raise UserError("--minutes decides the number of epochs: --epochs can't be given too")
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UserError(
            "--minutes: can't measure with several processes; measure with one, or use --epochs"
        )
    return minutes


def _evaluate(arguments: argparse.Namespace) -> None:
    from triscale.runs import evaluate_weights

    result = evaluate_weights(
        Path(arguments.weights),
        Path(arguments.data),
        split=arguments.split,
        size=arguments.size,
        metric=arguments.metric,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        precision=arguments.precision,
        overrides=arguments.overrides,
    )
    if arguments.json:
        print(json.dumps(result.to_json()))
        return
    _table(
        ("class", "AP"),
        [(name, f"{ap:.4f}") for name, ap in result.per_class.items() if ap == ap],
    )
    for name, value in result.numbers.items():
        print(f"{name} {value:.4f}")
    print(f"{result.metric} mAP {result.mean:.4f} on {result.images} pictures")


def _predict(arguments: argparse.Namespace) -> None:
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
        _table(("picture", "label", "score", "x1 y1 x2 y2"), rows)
        print(f"{len(pictures)} drawn pictures in {out}")


def _convert(arguments: argparse.Namespace) -> None:
    from triscale.predict import find_weights
    from triscale.weights.contents import read_names
    from triscale.weights.formats import convert, files_of, lost_in

    source, target = find_weights(Path(arguments.source)), Path(arguments.target)
    if not arguments.force:
        _require_new(files_of(target), hint="; --force replaces it")
    weights = convert(
        source,
        target,
        cfg=Path(arguments.cfg) if arguments.cfg else None,
        classes=read_names(Path(arguments.classes)) if arguments.classes else None,
        size=arguments.size,
        fit=arguments.fit,
    )
    print(f"{source}: {weights.describe()}")
    lost = lost_in(target, weights)
    print(f"wrote {target}" + (f"; it has no place for {', '.join(lost)}" if lost else ""))


def _download(arguments: argparse.Namespace) -> None:
    from triscale.log import Narrator
    from triscale.weights.formats import convert, fetch, files_of, writer_of
    from triscale.weights.zoo import ZOO

    if arguments.name == "list":
        print("\n".join(ZOO))
        return
    target = Path(arguments.to) if arguments.to else None
    if target:
        writer_of(target)  # before the long download
        _require_new(files_of(target))
    with Narrator() as narrator:
        path = fetch(arguments.name, narrator=narrator, mirror=arguments.mirror)
    if target:
        convert(path, target)
    print(target or path)


def _require_new(paths: Sequence[Path], *, hint: str = "") -> None:
    """UserError if one of the files that are going to be written is there."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path}: is there already{hint}")


def _recipes(arguments: argparse.Namespace) -> None:
    from triscale.recipes import recipe_names, recipe_text

    if arguments.name:
        print(recipe_text(arguments.name), end="")
        return
    for name in recipe_names():
        first = recipe_text(name).splitlines()[0].removeprefix("#").strip()
        print(f"{name:14} {first}")


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


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "eval": _evaluate,
    "predict": _predict,
    "convert": _convert,
    "download": _download,
    "recipes": _recipes,
}

if __name__ == "__main__":
    sys.exit(main())
