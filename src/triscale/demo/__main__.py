"""`make demo`: from nothing to a trained detector, on pictures that are drawn for the purpose.

Draws the embedded data set, trains the `demo` recipe on it, and says where the results are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from triscale.cli import guarded

NUM_TRAIN, NUM_TEST = 900, 200
SIZE = (240, 256)  # height, width of the pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m triscale.demo", description=__doc__)
    parser.add_argument("--out", default="runs/demo", help="folder for the data set and the run")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _demo(Path(arguments.out)))


def _demo(out: Path) -> None:
    from triscale.data.pictures import read_picture
    from triscale.demo.scenes import write_scenes
    from triscale.draw import contact_sheet, write_picture
    from triscale.recipe import load_recipe
    from triscale.runs import start_run

    began = time.perf_counter()
    devkit = out / "VOCdevkit"
    print(f"drawing {NUM_TRAIN + NUM_TEST} pictures into {devkit}", flush=True)
    write_scenes(devkit, num_train=NUM_TRAIN, num_test=NUM_TEST, size=SIZE)
    drawn = time.perf_counter()

    number = 1
    while (run := out / f"run-{number}").exists():
        number += 1
    result = start_run(devkit, load_recipe("demo"), name="demo", out=run)
    assert result.last is not None, "the demo recipe validates"
    trained = time.perf_counter()

    pictures = sorted((run / "predictions").glob("*.jpg"))
    write_picture(
        run / "pictures.png", contact_sheet([read_picture(p) for p in pictures], columns=4)
    )
    print(
        f"\nVOC07 mAP {result.last.mean:.4f} on {result.last.images} held-out pictures\n"
        f"  drawn in {drawn - began:.0f} s, trained and validated in {trained - drawn:.0f} s\n"
        f"  pictures, true boxes in white:  {run / 'pictures.png'}\n"
        f"  curves, mistakes, what to do:   {run / 'report.html'}\n"
        f"  weights:                        {run / 'best.safetensors'}\n"
        f"  log, one JSON object per line:  {run / 'log.jsonl'}\n"
        f"Try: .venv/bin/triscale predict {run} {devkit / 'VOC2007' / 'JPEGImages'}"
    )


if __name__ == "__main__":
    sys.exit(main())
