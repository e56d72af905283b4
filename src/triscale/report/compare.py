"""Several runs on one page: what differs between them, and what it brought."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from triscale.checkpoint import fingerprint
from triscale.config import to_dict
from triscale.errors import UserError
from triscale.files import write_atomically
from triscale.page import Cell, Html, Section, Value, columns, escape, listing, page, table
from triscale.report.advice import advise, losses_of
from triscale.report.build import duration
from triscale.report.found import Seen, examine
from triscale.report.mistakes import class_aps
from triscale.report.plots import Curve, curves
from triscale.report.story import Record, Story, epoch_seconds

# keys in which runs differ without being different experiments
_PLACES = ("data.path", "train.device", "train.workers", "train.pictures", "train.log_interval")


def write_comparison(stories: Sequence[Story], path: Path) -> None:
    """Write the page that compares runs, atomically."""
    write_atomically(path, make_comparison(stories).encode())


def make_comparison(stories: Sequence[Story]) -> str:
    """The page that compares runs; UserError if one is named twice."""
    if len({story.folder.resolve() for story in stories}) < len(stories):
        raise UserError("report: expected different runs to compare, found the same one twice")
    names = run_names([story.folder for story in stories])
    seen = [examine(story.found) if story.found else None for story in stories]
    sections = [
        _results(stories, seen, names),
        _recipes(stories, names),
        *_curves(stories, names),
        *_classes(seen, names),
        *_mistakes(seen, names),
    ]
    return page(f"{len(stories)} runs compared", lead=", ".join(names), sections=sections)


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell the folders apart."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _results(
    stories: Sequence[Story], seen: Sequence[Seen | None], names: Sequence[str]
) -> Section:
    """The figures that count, a row for each run."""
    rows: list[tuple[Value, ...]] = []
    for story, what, name in zip(stories, seen, names, strict=True):
        best = story.best
        last = story.evals[-1]["metrics"].get("mAP") if story.evals else None
        spent = [epoch_seconds(story, place) for place in range(len(story.epochs))]
        total, waited = sum(each.steps for each in spent), sum(each.waited for each in spent)
        rows.append(
            (
                name,
                _figure(best["metrics"]["mAP"] if best else None),
                int(best["epoch"]) if best else None,
                _figure(last),
                _figure(what.analysis.f1.best if what else None),
                len(story.epochs),
                Cell(duration(total), total) if total else None,
                Cell(f"{waited / total:.0%}", waited / total) if total else None,
            )
        )
    header = ("run", "best mAP", "epoch", "last mAP", "F1", "epochs", "in steps", "waited")
    body = table(header, rows)
    advice = "".join(
        f"<h3>{escape(name)}</h3>{listing(advise(story, what))}"
        for story, what, name in zip(stories, seen, names, strict=True)
    )
    notes = _caveats(stories, seen)
    if notes:
        body = Html(body + "<h3>Take care</h3>" + listing(notes))
    return Section("In short", Html(body + advice))


def _caveats(stories: Sequence[Story], seen: Sequence[Seen | None]) -> list[str]:
    """Why the figures may not be comparable."""
    notes: list[str] = [note for story in stories for note in story.notes]
    known = [what for what in seen if what]
    if len({str(fingerprint(what.found.index)) for what in known}) > 1:
        notes.append("The runs were validated on different data: their AP can't be compared.")
    if len({what.found.about.get("metric") for what in known}) > 1:
        notes.append("The runs were measured with different metrics: see Recipes.")
    if known and len({story.recipe.train.seed for story in stories}) == 1:
        notes.append(
            "One run of each says little about small differences: other seeds (--seed) show how "
            "much is chance."
        )
    return notes


def _recipes(stories: Sequence[Story], names: Sequence[str]) -> Section:
    """The keys in which the recipes differ."""
    flat = [
        {
            f"{section}.{key}": value
            for section, table_ in to_dict(story.recipe).items()
            for key, value in table_.items()
        }
        for story in stories
    ]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    rows = [
        (key, *(str(each.get(key, "")) for each in flat))
        for key in keys
        if key not in _PLACES and len({str(each.get(key)) for each in flat}) > 1
    ]
    if not rows:
        return Section("Recipes", "<p>The recipes are the same.</p>")
    return Section("Recipes", table(("key", *names), rows), "Only keys that differ.")


def _curves(stories: Sequence[Story], names: Sequence[str]) -> list[Section]:
    """The curves of all runs over each other."""

    def drawn(
        title: str,
        y: str,
        records: Callable[[Story], Sequence[Record]],
        value: Callable[[Record], object],
    ) -> list[Html]:
        lines = [
            Curve(name, [int(r["epoch"]) for r in each], list(map(_float, map(value, each))), k)
            for k, (story, name) in enumerate(zip(stories, names, strict=True))
            for each in [records(story)]
            if each
        ]
        return [curves(title, lines, x="epoch", y=y, whole=True)] if lines else []

    parts = [
        *drawn("Validation", "mAP", lambda s: s.evals, lambda r: r["metrics"].get("mAP")),
        *drawn("Training loss", "total", lambda s: s.epochs, lambda r: r.get("loss")),
        *drawn("Learning rate", "at the end of the epoch", lambda s: s.epochs, lambda r: r["lr"]),
    ]
    note = "Losses can be compared only where the recipes have the same [loss] and [assign]."
    return [Section("Curves", columns(parts), note)] if parts else []


def _classes(seen: Sequence[Seen | None], names: Sequence[str]) -> list[Section]:
    """AP of each class, side by side."""
    known = [(what, name) for what, name in zip(seen, names, strict=True) if what]
    if not known:
        return []
    classes = list(dict.fromkeys(c for what, _ in known for c in what.found.index.classes))
    aps = [
        dict(zip(what.found.index.classes, class_aps(what).tolist(), strict=True))
        for what, _ in known
    ]
    rows: list[tuple[Value, ...]] = []
    for name in classes:
        values = [each.get(name, float("nan")) for each in aps]
        rows.append((name, *map(_figure, values), _figure(values[-1] - values[0], signed=True)))
    header = ("class", *(name for _, name in known), "last against first")
    return [Section("Classes", table(header, rows), "AP of each class at the best validation.")]


def _mistakes(seen: Sequence[Seen | None], names: Sequence[str]) -> list[Section]:
    """What each kind of mistake costs each run."""
    known = [(what, name) for what, name in zip(seen, names, strict=True) if what]
    if not known:
        return []
    kinds = known[0][0].analysis.errors.kinds
    rows: list[tuple[Value, ...]] = [
        (kind, *(_figure(float(what.analysis.errors.d_ap[k])) for what, _ in known))
        for k, kind in enumerate(kinds)
    ]
    main = [
        f"{name}: {losses[0].kind} costs most"
        for what, name in known
        for losses in [losses_of(what)]
        if losses
    ]
    note = "AP at an IoU of 0.5 that each run would gain if it made no such mistake."
    body = Html(table(("kind", *(name for _, name in known)), rows) + listing(main))
    return [Section("Kinds of mistakes", body, note)]


def _figure(value: float | None, *, signed: bool = False) -> Value:
    if value is None or np.isnan(value):
        return None
    return Cell(f"{value:+.4f}" if signed else f"{value:.4f}", float(value))


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")
