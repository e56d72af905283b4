"""The page about one run: what came out, what to do next, and all that it is read from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triscale.files import write_atomically
from triscale.log import LOSSES
from triscale.page import (
    Cell,
    Html,
    Section,
    Value,
    code,
    columns,
    details,
    facts,
    listing,
    page,
    paragraph,
    table,
)
from triscale.recipe import dump_recipe
from triscale.report.advice import advise
from triscale.report.found import Seen, examine
from triscale.report.galleries import make_galleries
from triscale.report.mistakes import mistake_sections
from triscale.report.plots import Curve, curves, stacked
from triscale.report.story import Story, epoch_seconds

NAME = "report.html"


def write_report(story: Story, path: Path) -> None:
    """Write the page about a run, atomically."""
    write_atomically(path, make_page(story).encode())


def make_page(story: Story) -> str:
    """The page about a run."""
    seen = examine(story.found) if story.found else None
    notes = list(story.notes)
    sections = [*_curves(story), *(mistake_sections(seen) if seen else [])]
    if seen:
        galleries = make_galleries(seen.found.index, seen.packed, seen.analysis)
        sections += [Section(title, body, note) for title, note, body in galleries.parts]
        if lost := galleries.lost:
            more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            notes.append(f"some pictures of the validation split can't be shown: {lost[0]}{more}")
    sections += [*_time(story), _card(story, seen)]
    train = story.recipe.train
    lead = f"{story.recipe.model.backbone} at {train.size} pixels, {train.epochs} epochs"
    return page(
        f"Run {story.folder.absolute().name}",
        lead=lead,
        sections=[_headline(story, seen, notes), *sections],
    )


def weights_of(story: Story) -> str:
    """Which weights the figures are of."""
    assert story.found is not None
    about, best = story.found.about, story.best
    if best and about.get("step") == best["step"]:
        return f"the best weights (after epoch {best['epoch']})"
    return str(about.get("weights") or "the newest weights")


def is_finished(story: Story) -> bool:
    """Whether the run got to the end of its last epoch."""
    newest = max((int(each["epoch"]) for each in story.evals), default=-1)
    return newest >= story.recipe.train.epochs - 1


def best_tiles(story: Story) -> list[tuple[str, Value]]:
    """The figures that count: the best mAP, when, and where the run is."""
    best = story.best
    tiles: list[tuple[str, Value]] = []
    if best:
        values = best["metrics"]
        tiles += [("best mAP", Cell(f"{values['mAP']:.4f}", values["mAP"]))]
        tiles += [(k, Cell(f"{values[k]:.4f}", values[k])) for k in ("AP50",) if values.get(k)]
        tiles += [("after epoch", int(best["epoch"]))]
    elif story.found:
        value = story.found.about.get("mAP")
        tiles += [("mAP", None if value is None else Cell(f"{value:.4f}", value))]
    else:
        tiles += [("best mAP", None)]
    done = max((int(each["epoch"]) + 1 for each in story.epochs), default=0)
    return [*tiles, ("epochs", f"{done} of {story.recipe.train.epochs}")]


def _headline(story: Story, seen: Seen | None, notes: Sequence[str]) -> Section:
    tiles = best_tiles(story)
    run = shlex.quote(str(story.folder))
    commands: list[str] = []
    if seen:
        threshold = seen.analysis.threshold
        tiles += [
            ("score with the best F1", Cell(f"{threshold:.2f}", threshold)),
            ("F1 there", seen.analysis.f1.best),
        ]
        commands += [f"triscale predict {run} PICTURES --score {max(0.01, threshold):.2f}"]
    if not is_finished(story):
        commands += [f"triscale train --resume {run}"]
    body = Html(facts(tiles) + "<h3>What to do next</h3>" + listing(advise(story, seen)))
    if commands:
        body = Html(body + code("\n".join(commands)))
    if not seen:
        body = Html(
            body
            + paragraph(
                "No detections of a validation are kept in this folder, so curves of precision, "
                f"mistakes and pictures are missing. With the data at hand, triscale report {run} "
                "measures the best weights again."
            )
        )
    if notes:
        body = Html(body + "<h3>Notes</h3>" + listing(notes))
    note = f"Figures of {weights_of(story)} on the validation split." if seen else ""
    return Section("In short", body, note)


def _curves(story: Story) -> list[Section]:
    """Loss terms, mAP and rate over the epochs."""
    parts: list[Html] = []
    train, evals = story.epochs, story.evals
    if train:
        x = [int(each["epoch"]) for each in train]
        terms = [name for name in LOSSES if any(each.get(name) for each in train)]
        lines = [Curve("total", x, _column(train, "loss"), 7, dashed=True)]
        lines += [Curve(name, x, _column(train, name), k) for k, name in enumerate(terms)]
        parts.append(curves("Training loss", lines, x="epoch", y="mean per picture", whole=True))
    if evals:
        x = [int(each["epoch"]) for each in evals]
        metrics = [each["metrics"] for each in evals]
        names = [n for n in ("mAP", "AP50", "AP75") if any(m.get(n) is not None for m in metrics)]
        lines = [Curve(name, x, _column(metrics, name), k) for k, name in enumerate(names)]
        best = story.best
        mark = (int(best["epoch"]), best["metrics"]["mAP"]) if best else None
        parts.append(curves("Validation", lines, x="epoch", y="AP", whole=True, mark=mark))
        per_class = [name for name in metrics[-1] if name.startswith("AP/")]
        if 1 < len(per_class) <= 8:
            lines = [
                Curve(name[3:], x, _column(metrics, name), k) for k, name in enumerate(per_class)
            ]
            parts.append(curves("AP of each class", lines, x="epoch", y="AP", whole=True))
    if train:
        line = Curve("", [int(each["epoch"]) for each in train], _column(train, "lr"), 0)
        parts.append(curves("Learning rate", [line], x="epoch", y="at its end", whole=True))
    if not parts:
        return []
    note = "Epochs count from 0. The ring marks the best validation, whose weights are kept."
    return [Section("Curves", columns(parts), note if story.best else "Epochs count from 0.")]


def _time(story: Story) -> list[Section]:
    """Where the time went."""
    about: dict[str, Any] = dict(story.found.about) if story.found else {}
    tiles: list[tuple[str, Value]] = []
    body = Html("")
    spent = [epoch_seconds(story, place) for place in range(len(story.epochs))]
    total, waited = sum(each.steps for each in spent), sum(each.waited for each in spent)
    if total > 0:
        speed = [float(each.get("images_per_second") or 0) for each in story.epochs]
        tiles += [
            ("in training steps", duration(total)),
            ("of it waited for data", f"{min(1.0, waited / total):.1%}"),
            ("pictures per second", Cell(f"{np.median(speed):.1f}", float(np.median(speed)))),
        ]
        x = [int(each["epoch"]) for each in story.epochs]
        compute = [max(0.0, each.steps - each.waited) for each in spent]
        parts = [
            Curve("computing", x, compute, 0),
            Curve("waiting for data", x, [each.waited for each in spent], 1),
        ]
        body = stacked("Seconds of each epoch's steps", x, parts, y="seconds")
    if seconds := about.get("validation_seconds"):
        tiles += [("one validation", duration(seconds))]
    for key, name in (("memory", "peak memory"), ("gpu_memory", "peak GPU memory")):
        if about.get(key) and "weights" not in about:  # else it is that of the measuring
            tiles += [(name, f"{about[key] / 2**30:.2f} GiB")]
    if story.skipped or story.rollbacks:
        tiles += [("skipped steps", story.skipped), ("times gone back", story.rollbacks)]
    narrow = Html(f'<div style="max-width:34rem">{body}</div>')
    return [Section("Time and memory", Html(facts(tiles) + narrow))] if tiles else []


def _card(story: Story, seen: Seen | None) -> Section:
    """Recipe and data."""
    recipe, about = story.recipe, dict(story.found.about) if story.found else {}
    rows: list[tuple[str, Value]] = [
        ("run folder", str(story.folder.absolute())),
        ("data", recipe.data.path or "not written down"),
        ("network", recipe.model.backbone),
        ("input", f"{recipe.train.size} pixels, {recipe.input.fit}"),
        ("batch size", str(recipe.train.batch_size)),
        ("optimiser", f"{recipe.optim.name}, rate {recipe.optim.lr:g}, {recipe.schedule.mode}"),
        ("started from", recipe.train.init or "random weights"),
        ("precision", recipe.train.precision),
        ("seed", str(recipe.train.seed)),
    ]
    if train := about.get("train"):
        rows.append(("training split", f"{train['pictures']:,} pictures, {train['boxes']:,} boxes"))
    if seen:
        index = seen.found.index
        split = f"{index.name}: {len(index):,} pictures, {len(index.boxes):,} boxes"
        rows += [("validation split", split), ("metric", str(about.get("metric", "")))]
        names = ", ".join(index.classes)
        short = names if len(index.classes) <= 20 else f"{len(index.classes)}: {names[:300]}..."
        rows.append(("classes", short))
    for key in ("device", "versions"):
        if about.get(key):
            rows.append((key, str(about[key])))
    body = table(("what", "value"), rows, sortable=False)
    return Section("Recipe and data", body + details("The whole recipe", code(dump_recipe(recipe))))


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _column(records: Sequence[Any], name: str) -> list[float]:
    """A number of each record; nan where it has none."""
    return [float("nan") if each.get(name) is None else float(each[name]) for each in records]
