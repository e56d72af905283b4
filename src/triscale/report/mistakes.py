"""What a validation says: classes, curves, confusion, scores, mistakes and sizes, as sections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triscale.page import Cell, Html, Section, Value, columns, escape, listing, table
from triscale.report.advice import losses_of
from triscale.report.found import Seen
from triscale.report.plots import NUM_COLOURS, Curve, bars, curves, reliability

FEW = 20  # classes that fit into a drawing, a matrix, a column of bars
EXTREMES = 10  # classes shown from either end where there are more
MATRIX = 12  # classes in the matrix where there are more
PAIRS = 12  # confusions in the list
_MEANING = {
    "missed": "nothing was found there",
    "class": "the box is right, the class is not",
    "location": "the class is right, the box overlaps by less than half",
    "both": "neither class nor box is right",
    "duplicate": "found already by a better detection",
    "background": "there is no object",
}


def mistake_sections(seen: Seen) -> list[Section]:
    """Everything about a validation but its pictures."""
    return [
        _classes(seen),
        _precision_recall(seen),
        _kinds(seen),
        _confusion(seen),
        _scores(seen),
        _sizes(seen),
    ]


def _classes(seen: Seen) -> Section:
    """AP of each class."""
    names, confusion = seen.found.index.classes, seen.analysis.confusion
    ap = class_aps(seen)
    order = [k for k in np.argsort(ap, kind="stable").tolist() if not np.isnan(ap[k])][::-1]
    objects = np.bincount(
        seen.truth.labels[~seen.truth.difficult & ~seen.truth.crowd], minlength=len(names)
    )
    with np.errstate(invalid="ignore"):  # 0 / 0
        right = np.diag(confusion)[:-1]
        precision = right / confusion.sum(0)[:-1]
        recall = right / confusion.sum(1)[:-1]
    rest = [k for k in range(len(names)) if k not in set(order)]
    rows: list[tuple[Value, ...]] = [
        (names[k], int(objects[k]), *(float(each[k]) for each in (ap, precision, recall)))
        for k in [*order, *rest]
    ]
    header = ("class", "objects", "AP", "precision", "recall")
    parts = [table(header, rows)]

    def drawn(title: str, chosen: list[int]) -> Html:
        labels = [f"{ap[k]:.3f}" for k in chosen]
        return bars(
            title, [names[k] for k in chosen], [ap[k] for k in chosen], x="AP", labels=labels
        )

    if len(order) > FEW:
        parts.append(
            Html(
                drawn(f"The {EXTREMES} highest", order[:EXTREMES])
                + drawn(f"The {EXTREMES} lowest", order[-EXTREMES:])
            )
        )
    elif order:
        parts.append(drawn("AP by class", order))
    metric = seen.found.about.get("metric", "")
    note = (
        f"AP is that of the metric {metric}; precision and recall are those of detections with a "
        f"score of {seen.analysis.threshold:.2f} or more, at an IoU of 0.5. A click on a header "
        "sorts."
    )
    return Section("Classes", columns(parts), note)


def class_aps(seen: Seen) -> NDArray[np.float64]:
    """AP of each class (C,) as it was logged; nan where there is none."""
    per_class = seen.found.about.get("per_class", {})
    values = [per_class.get(name) for name in seen.found.index.classes]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _precision_recall(seen: Seen) -> Section:
    names, analysis = seen.found.index.classes, seen.analysis
    known = [k for k, curve in enumerate(analysis.curves) if len(curve.recall)]
    if len(known) > NUM_COLOURS:  # the three best and the three worst before all others
        ap = np.nan_to_num(class_aps(seen))
        known.sort(key=lambda k: -ap[k])
        coloured = [*known[:3], *known[-3:]]
    else:
        coloured = known
    colours = {k: colour for colour, k in enumerate(coloured)}
    lines = [
        Curve(names[k], analysis.curves[k].recall, analysis.curves[k].precision, colours.get(k))
        for k in sorted(known, key=lambda k: k in colours)  # the coloured ones on top
    ]
    limits = (0.0, 1.02)
    parts = [curves("By class", lines, x="recall", y="precision", limits=limits)]
    at = analysis.at_threshold
    if len(analysis.f1.scores):
        best = None if np.isnan(analysis.f1.best) else (analysis.f1.threshold, analysis.f1.best)
        parts.append(
            curves(
                "F1 by score",
                [Curve("", analysis.f1.scores, analysis.f1.f1, 0)],
                x="least score that is shown",
                y="F1",
                limits=limits,
                mark=best,
            )
        )
    said = (
        f"At a score of {analysis.threshold:.2f}, precision is {_text(at.precision)} and recall "
        f"{_text(at.recall)}, all classes together, at an IoU of 0.5."
    )
    return Section("Precision and recall", columns(parts), said)


def _kinds(seen: Seen) -> Section:
    """The six kinds of mistakes, the dearest first."""
    errors = seen.analysis.errors
    order = np.argsort(-np.nan_to_num(errors.d_ap), kind="stable").tolist()
    share = {loss.kind: loss.share for loss in losses_of(seen)}
    names = [errors.kinds[k] for k in order]
    rows: list[tuple[Value, ...]] = [
        (
            errors.kinds[k],
            int(errors.counts[k]),
            float(errors.d_ap[k]),
            Cell(f"{share.get(errors.kinds[k], 0.0):.0%}", share.get(errors.kinds[k], 0.0)),
        )
        for k in order
    ]
    drawing = bars(
        "AP that mending it would bring",
        names,
        [float(errors.d_ap[k]) for k in order],
        x="AP at an IoU of 0.5",
        labels=[f"{errors.d_ap[k]:.3f}" for k in order],
        colours=[1] * len(order),
    )
    meanings = listing(f"{name}: {_MEANING[name]}" for name in names)
    parts = [drawing, Html(table(("kind", "count", "AP", "share"), rows) + meanings)]
    note = (
        "Kinds as TIDE has them, over all scores. Without any false detection the AP of "
        f"{_text(errors.ap)} would be {_text(errors.ap + errors.fp_d_ap)}, without any missed "
        f"object {_text(errors.ap + errors.fn_d_ap)}."
    )
    return Section("Kinds of mistakes", columns(parts), note)


def _confusion(seen: Seen) -> Section:
    """Which class is taken for which."""
    confusion, names = seen.analysis.confusion, [*seen.found.index.classes, "background"]
    off = confusion.copy()
    np.fill_diagonal(off, 0)
    between = off[:-1, :-1]
    pairs = np.argsort(-between, axis=None, kind="stable")[:PAIRS]
    lines = [
        f"{names[true]} taken for {names[predicted]}: {between[true, predicted]} times".replace(
            " 1 times", " once"
        )
        for true, predicted in zip(*np.unravel_index(pairs, between.shape), strict=True)
        if between[true, predicted]
    ]
    chosen = list(range(len(names)))
    if len(names) - 1 > FEW:
        order = np.argsort(-(between.sum(0) + between.sum(1)), kind="stable")[:MATRIX]
        chosen = [*sorted(order.tolist()), len(names) - 1]
    turned = ' style="writing-mode:vertical-rl;transform:rotate(180deg)"' if len(chosen) > 6 else ""
    heads = "".join(
        f'<th scope="col" class="number"><span{turned}>{escape(names[k])}</span></th>'
        for k in chosen
    )
    body = ""
    for true in chosen:
        total = max(1, int(confusion[true].sum()))
        body += f'<tr><th scope="row">{escape(names[true])}</th>'
        for predicted in chosen:
            count = int(confusion[true, predicted])
            colour = "--c2" if true == predicted else "--c1"
            depth = round(70 * count / total)
            style = f"background:color-mix(in srgb,var({colour}) {depth}%,transparent)"
            text = f"{count:,}" if count else "\u00b7"
            body += f'<td class="number" style="{style}">{text}</td>'
        body += "</tr>"
    matrix = Html(
        '<div class="wide"><table><thead><tr><th scope="col">labelled as</th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    note = (
        f"Rows are labels, columns what was found with a score of {seen.analysis.threshold:.2f} or "
        "more; the last column is missed objects, the last row detections where nothing is."
    )
    if len(chosen) < len(names):
        note += f" The {MATRIX} classes that are confused most."
    extra = listing(lines) if lines else "<p>No class is taken for another.</p>"
    return Section("Confusion", matrix + extra, note)


def _scores(seen: Seen) -> Section:
    """Whether the scores can be believed."""
    calibration = seen.analysis.calibration
    edges = np.linspace(0, 1, len(calibration.count) + 1)
    rows: list[tuple[Value, ...]] = [
        (f"{low:.1f}\u2013{high:.1f}", int(count), float(score), float(precision))
        for low, high, count, score, precision in zip(
            edges[:-1],
            edges[1:],
            calibration.count,
            calibration.score,
            calibration.precision,
            strict=True,
        )
    ]
    drawing = reliability("Calibration", edges, calibration.precision)
    parts = [drawing, table(("scores", "count", "mean", "right"), rows, sortable=False)]
    note = (
        "Where the columns end at the dashed line, a score of 0.8 is right in 8 of 10 cases. The "
        f"expected calibration error is {_text(calibration.ece)}."
    )
    return Section("Scores", columns(parts), note)


def _sizes(seen: Seen) -> Section:
    """AP and recall by the size of the objects."""
    sizes = seen.analysis.sizes
    rows: list[tuple[Value, ...]] = [
        (row.name, _range(row.low, row.high), row.objects, row.ap, row.recall) for row in sizes
    ]
    some = [row for row in sizes if row.objects]
    parts = [table(("size", "side in pixels", "objects", "AP", "recall"), rows, sortable=False)]
    if some:
        parts.append(
            bars(
                "Recall by size",
                [row.name for row in some],
                [row.recall for row in some],
                x=f"recall at a score of {seen.analysis.threshold:.2f}",
                labels=[f"{row.recall:.3f}" for row in some],
                colours=[2] * len(some),
            )
        )
    note = (
        "Root of the area in pixels of the pictures: COCO's three ranges, then thirds of the "
        "objects of this split. AP at an IoU of 0.5."
    )
    return Section("Size of objects", columns(parts), note)


def _range(low: float, high: float) -> str:
    low, high = low**0.5, high**0.5
    return f"from {low:.0f}" if np.isinf(high) else f"{low:.0f}\u2013{high:.0f}"


def _text(value: float) -> str:
    return "unknown" if np.isnan(value) else f"{value:.3f}"
