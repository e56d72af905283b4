"""Drawings of a report: SVG whose colours are those of the page, in light and in dark.

Matplotlib lays them out. It knows no colours but fixed ones, so it is given some that nobody would
choose, and the page's variables take their places in the text it writes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from triscale.page import Html, escape, svg

NUM_COLOURS = 8  # of the page
_INK, _MUTED, _LINE = "#010203", "#010204", "#010205"
_SERIES = [f"#0102{16 + k:02x}" for k in range(NUM_COLOURS)]
_VARIABLES = {_INK: "currentColor", _MUTED: "var(--muted)", _LINE: "var(--line)"} | {
    colour: f"var(--c{k})" for k, colour in enumerate(_SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # "$" is a character of a class's name
}
_SIZE = 4.2, 2.6  # inches: readable on a phone, where it is as wide
_NAME = 24  # letters: longer names of bars would leave no room for these


class Curve(NamedTuple):
    """A line of a plot; `colour` None: one of many, in the background."""

    name: str
    x: ArrayLike
    y: ArrayLike
    colour: int | None
    dashed: bool = False


def curves(
    title: str,
    lines: Sequence[Curve],
    *,
    x: str,
    y: str,
    limits: tuple[float, float] | None = None,
    whole: bool = False,
    mark: tuple[float, float] | None = None,
) -> Html:
    """Lines with their legend; `whole`: x counts, `mark`: a point that stands out."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure, axes = _axes(x, y)
        for line in lines:
            short = len(np.atleast_1d(np.asarray(line.x))) < 20 and whole
            axes.plot(
                line.x,
                line.y,
                color=_MUTED if line.colour is None else _SERIES[line.colour % NUM_COLOURS],
                linewidth=0.4 if line.colour is None else 1.6,
                linestyle="--" if line.dashed else "-",
                marker="o" if short else None,
                markersize=3,
            )
        if mark:
            axes.plot(*mark, marker="o", markersize=6, color=_INK, fillstyle="none")
        if limits:
            axes.set_ylim(*limits)
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing = _write(figure, title)
    names = [(line.name, line.colour) for line in lines if line.colour is not None and line.name]
    return Html(_head(title) + drawing + legend(names))


def bars(
    title: str,
    names: Sequence[str],
    values: Sequence[float],
    *,
    x: str,
    labels: Sequence[str],
    colours: Sequence[int] | None = None,
) -> Html:
    """Horizontal bars with a text at the end of each."""
    known = [math.isfinite(value) for value in values]
    labels = [label if k else "\u2013" for label, k in zip(labels, known, strict=True)]
    values = [value if k else 0.0 for value, k in zip(values, known, strict=True)]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure, axes = _axes(x, "", height=0.8 + 0.32 * len(names))
        rows = np.arange(len(names))[::-1]
        colours = colours or [0] * len(names)
        axes.barh(rows, values, 0.62, color=[_SERIES[colour] for colour in colours])
        top = max([*values, 0.01])
        for row, value, label in zip(rows, values, labels, strict=True):
            axes.text(value + 0.015 * top, row, label, va="center", fontsize=8.5)
        axes.set_yticks(rows, [n if len(n) <= _NAME else f"{n[: _NAME - 1]}\u2026" for n in names])
        axes.margins(y=0.02)
        axes.tick_params("y", length=0, labelcolor=_INK)
        axes.set_xlim(min([*values, 0.0]), 1.25 * top)
        axes.grid(visible=False, axis="y")
        drawing = _write(figure, title)
    return Html(_head(title) + drawing)


def reliability(title: str, edges: ArrayLike, precision: ArrayLike) -> Html:
    """Columns of precision over the scores, and the line on which they should end."""
    edges, heights = np.asarray(edges), np.nan_to_num(np.asarray(precision))
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure, axes = _axes("score", "share that is right")
        axes.bar(edges[:-1], heights, np.diff(edges) * 0.92, align="edge", color=_SERIES[0])
        axes.plot([0, 1], [0, 1], color=_MUTED, linestyle="--", linewidth=1)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        drawing = _write(figure, title)
    return Html(_head(title) + drawing)


def stacked(title: str, x: ArrayLike, parts: Sequence[Curve], *, y: str) -> Html:
    """Columns of parts over epochs, one on another."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure, axes = _axes("epoch", y)
        below = np.zeros(len(np.asarray(x)))
        for part in parts:
            heights = np.nan_to_num(np.asarray(part.y, np.float64))
            colour = _SERIES[part.colour or 0]
            axes.bar(np.asarray(x), heights, 0.8, below, color=colour)
            below += heights
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing = _write(figure, title)
    return Html(_head(title) + drawing + legend([(p.name, p.colour) for p in parts]))


def legend(names: Sequence[tuple[str, int | None]]) -> str:
    """Names with dots in their colours; it wraps where a legend in a drawing couldn't."""
    if len(names) < 2:
        return ""
    dots = " &ensp;".join(
        f'<span class="whole"><span style="color:var(--c{(k or 0) % NUM_COLOURS})">'
        f"&#9679;</span>&nbsp;{escape(name)}</span>"
        for name, k in names
    )
    return f'<p class="note">{dots}</p>'


def _head(title: str) -> str:
    return f"<h3>{escape(title)}</h3>"


def _axes(x: str, y: str, *, height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure((_SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    for each in (figure, axes):
        each.patch.set_visible(False)
    axes.locator_params("x", nbins=6)  # more numbers than that would touch
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _write(figure: Figure, title: str) -> str:
    """The drawing, without what a page has no use for."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # its font only measures; the reader's browser has others
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        # Not savefig, which draws everything twice.
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' id="[a-z0-9.]+_[0-9]+"', "", text)  # groups; what is used has other names
    text = re.sub(r"font(?:-family)?: (?:([0-9.]+px) )?'[^;\"]*", _font, text)
    text = re.sub(r'="[^"<>]*"', _rounded, text)
    text = re.sub(r"\s*\n\s*", " ", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    how = 'role="img" style="stroke-linejoin:round;stroke-linecap:butt"'
    return svg(text.replace("<svg", f'<svg aria-label="{escape(title)}" {how}', 1))


def _rounded(match: re.Match[str]) -> str:
    """An attribute whose numbers have one digit: a tenth of a point is fine enough."""
    return re.sub(r"(\d\.\d)\d+", r"\1", match[0])


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[1]}; font-family: inherit" if match[1] else "font-family: inherit"
