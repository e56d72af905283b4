"""The drawings of docs/how-it-works.md: `python docs/tools/drawings.py` writes docs/img/*.svg.

Colours are those of Okabe and Ito ("Color Universal Design", 2008): colour-blind eyes tell them
apart. Each drawing has its own light ground, so that it can be read in a dark theme too.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "img"
INK, FAINT, GROUND = "#1d2330", "#b9c0cc", "#fbfbfd"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9"


def svg(width: int, height: int, *parts: str, title: str) -> str:
    """A drawing of so many units, on its ground."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="system-ui, sans-serif" font-size="14">',
            f"<title>{escape(title)}</title>",
            "<defs>",
            *(
                f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                f'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
                for name, colour in (("ink", INK), ("orange", ORANGE))
            ),
            "</defs>",
            rect(0.5, 0.5, width - 1, height - 1, fill=GROUND, stroke="#d9dde5", radius=10),
            *parts,
            "</svg>\n",
        ]
    )


def rect(
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    fill: str = "none",
    stroke: str = INK,
    line: float = 1,
    radius: float = 0,
    dash: str = "",
    opacity: float = 1,
) -> str:
    """A rectangle."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
        f'fill="{fill}" fill-opacity="{opacity:g}" stroke="{stroke}" stroke-width="{line:g}"'
        + (f' stroke-dasharray="{dash}"' if dash else "")
        + "/>"
    )


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 14,
    fill: str = INK,
    at: str = "start",
    bold=False,
) -> str:
    """A line of text; `at` is its anchor."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{at}"{weight}>'
        f"{escape(words)}</text>"
    )


def line(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    *,
    stroke: str = INK,
    wide: float = 1,
    head: str = "",
) -> str:
    """A line; `head` names the arrow head at its end."""
    end = f' marker-end="url(#{head})"' if head else ""
    return (
        f'<path d="M{x1:g} {y1:g} {x2:g} {y2:g}" stroke="{stroke}" stroke-width="{wide:g}"{end}/>'
    )


def box(x: float, y: float, name: str, what: str, *, colour: str, width: float = 150) -> list[str]:
    """A step of the way: a name and what it holds."""
    return [
        rect(x, y, width, 54, fill=colour, stroke=colour, radius=7, opacity=0.13),
        text(x + width / 2, y + 23, name, at="middle", bold=True),
        text(x + width / 2, y + 42, what, size=12, at="middle"),
    ]


def way() -> str:
    """From files to losses and to detections."""
    steps = [
        (0, 44, BLUE, "Index", "paths, boxes, labels"),
        (1, 44, BLUE, "Plan", "seed, position"),
        (2, 44, BLUE, "Draw", "which, how"),
        (3, 44, BLUE, "Sample", "uint8 picture, boxes"),
        (0, 215, GREEN, "Batch", "uint8, padded boxes"),
        (1, 180, GREEN, "Targets", "rows, B x S"),
        (1, 250, GREEN, "Predictions", "raw, B x N"),
        (2, 215, GREEN, "Losses", "five numbers"),
        (3, 215, GREEN, "weights, log", "SGD or AdamW"),
        (1, 344, ORANGE, "Decoded", "best 100, B x K"),
        (2, 344, ORANGE, "Detections", "in picture's pixels"),
        (3, 344, ORANGE, "results", "mAP, pictures, JSON"),
    ]
    parts = [
        text(24, 32, "loader processes", fill=BLUE, bold=True),
        text(24, 168, "device", fill=GREEN, bold=True),
        text(24, 376, "evaluation, use", fill=ORANGE, bold=True),
    ]
    for column, y, colour, name, what in steps:
        parts += box(24 + column * 180, y, name, what, colour=colour)
    arrows = [
        *((174 + k * 180, 71, 202 + k * 180, 71) for k in range(3)),
        (174, 234, 202, 212),
        (174, 250, 202, 272),
        (354, 212, 382, 234),
        (354, 272, 382, 250),
        (534, 242, 562, 242),
        (279, 304, 279, 342),
        (354, 371, 382, 371),
        (534, 371, 562, 371),
    ]
    parts += [line(*ends, head="ink") for ends in arrows]
    parts += [
        '<path d="M639 98v28q0 12-12 12H111q-12 0-12 12v63" fill="none" stroke="#1d2330" '
        'marker-end="url(#ink)"/>',
        text(369, 130, "collate, copy to the device", size=12, at="middle"),
        text(176, 209, "assign", size=12, at="end"),
        text(176, 282, "network", size=12, at="end"),
        text(290, 328, "decode, suppress", size=12),
    ]
    return svg(744, 416, *parts, title="From files to losses and detections")


def strides() -> str:
    """The three maps of predictions over one input."""
    parts: list[str] = []
    for k, (stride, shown, colour, anchors) in enumerate(
        [
            (32, 13, BLUE, "116x90  156x198  373x326"),
            (16, 26, GREEN, "30x61  62x45  59x119"),
            (8, 52, ORANGE, "10x13  16x30  33x23"),
        ]
    ):
        x, y, side = 30 + k * 236, 44, 208
        cell = side / shown
        grid = "".join(
            f"M{x + i * cell:g} {y}v{side}M{x} {y + i * cell:g}h{side}" for i in range(shown + 1)
        )
        parts += [
            rect(x, y, side, side, fill=colour, stroke=colour, opacity=0.07),
            f'<path d="{grid}" stroke="{colour}" stroke-width="{0.7 if k < 2 else 0.4}"/>',
            rect(
                *(x + int(0.36 * shown) * cell, y + int(0.42 * shown) * cell, cell, cell),
                fill=colour,
                stroke=colour,
            ),
            text(x, 32, f"stride {stride}: {shown} x {shown} cells", fill=colour, bold=True),
            text(x, 274, f"3 anchors a cell: {shown * shown * 3:,} predictions", size=13),
            text(x, 294, anchors, size=12),
        ]
    parts.append(
        text(
            30, 326, "an input of 416 x 416: N = 507 + 2,028 + 8,112 = 10,647 predictions", size=13
        )
    )
    return svg(740, 344, *parts, title="Three maps of predictions")


def cells() -> str:
    """One object: its cell, its anchor, what is ignored."""
    x, y, side, count = 30, 30, 338, 13
    cell = side / count
    grid = "".join(
        f"M{x + i * cell:g} {y}v{side}M{x} {y + i * cell:g}h{side}" for i in range(count + 1)
    )
    left, top, width, height = x + 3.1 * cell, y + 3.2 * cell, 4.7 * cell, 6.6 * cell
    cx, cy = left + width / 2, top + height / 2
    column, row = int((cx - x) / cell), int((cy - y) / cell)
    scale = cell / 32

    def anchor(w: float, h: float, **style: str | float) -> str:
        return rect(cx - w * scale / 2, cy - h * scale / 2, w * scale, h * scale, **style)

    parts = [
        f'<path d="{grid}" stroke="{FAINT}" stroke-width="0.8"/>',
        rect(
            x + column * cell, y + row * cell, cell, cell, fill=ORANGE, stroke=ORANGE, opacity=0.5
        ),
        rect(left, top, width, height, fill=BLUE, stroke=BLUE, line=3, opacity=0.08),
        anchor(116, 90, stroke=FAINT, line=1.5, dash="5 4"),
        anchor(373, 326, stroke=FAINT, line=1.5, dash="5 4"),
        anchor(156, 198, stroke=ORANGE, line=2.5, dash="7 4"),
        rect(left + 18, top - 14, width + 8, height + 4, stroke=GREEN, line=1.6, dash="2 3"),
        f'<circle cx="{cx:g}" cy="{cy:g}" r="4.5" fill="{BLUE}"/>',
    ]
    notes = [
        (BLUE, "an object, and its centre", "a box of the label file, in pixels of the input"),
        (ORANGE, "the cell that holds the centre", "on the map of the best anchor's stride"),
        (ORANGE, "the anchor nearest in shape", "dashed; by IoU on one centre, of all nine"),
        (FAINT, "the two other anchors of that stride", "learn nothing from this object"),
        (GREEN, "a prediction that fits by chance", "dotted; IoU above 0.7: ignored, no negative"),
        (INK, "all other predictions", "learn that there is no object"),
    ]
    for k, (colour, what, more) in enumerate(notes):
        at = 52 + k * 54
        parts += [
            rect(404, at - 13, 16, 16, fill=colour, stroke=colour, radius=3),
            text(432, at, what, bold=True),
            text(432, at + 19, more, size=13),
        ]
    return svg(740, 398, *parts, title="Which prediction must find an object")


def loss() -> str:
    """Which terms look at which predictions."""
    kinds = ["-"] * 26
    for place in (5, 17):
        kinds[place] = "+"
    for place in (4, 6, 18):
        kinds[place] = "o"
    colours = {"-": FAINT, "+": ORANGE, "o": GREEN}
    parts = [text(30, 34, "N predictions of a picture", bold=True)]
    for i, kind in enumerate(kinds):
        parts.append(
            rect(30 + i * 26, 46, 21, 30, fill=colours[kind], stroke=colours[kind], radius=3,
                 opacity=0.95 if kind != "-" else 0.4)
        )  # fmt: skip
    table = [
        ("", "has an object", "ignored", "all others"),
        ("objectness", "is 1", "-", "is 0"),
        ("centre", "where in its cell", "-", "-"),
        ("scale", "log(size / anchor)", "-", "-"),
        ("classes", "its class is 1, others 0", "-", "-"),
        ("iou (if asked for)", "1 - CIoU of the boxes", "-", "-"),
    ]
    columns = (30, 210, 430, 570)
    heads = (INK, ORANGE, GREEN, "#6b7383")
    for r, cells_of_row in enumerate(table):
        at = 122 + r * 30
        for c, words in enumerate(cells_of_row):
            head = r == 0 or c == 0
            parts.append(text(columns[c], at, words, fill=heads[c] if r == 0 else INK, bold=head))
        if r:
            parts.append(line(30, at - 20, 706, at - 20, stroke="#e2e5eb"))
    return svg(740, 300, *parts, title="Which loss looks at which prediction")


def plan() -> str:
    """Positions, epochs and steps; who carries them out doesn't matter."""
    order = [np.random.default_rng(seed).permutation(10) for seed in (3, 8)]
    parts = [
        text(30, 34, "position in the run: 0, 1, 2, ... (10 pictures, batches of 4)", bold=True)
    ]
    for position in range(20):
        epoch, place = divmod(position, 10)
        x = 30 + position * 34
        colour = (BLUE, PURPLE)[epoch]
        parts += [
            rect(x, 76, 30, 34, fill=colour, stroke=colour, radius=4, opacity=0.15),
            text(x + 15, 98, str(order[epoch][place]), at="middle"),
        ]
    parts += [
        text(30, 66, "epoch 0: an order of all pictures", size=13, fill=BLUE),
        text(370, 66, "epoch 1: another order", size=13, fill=PURPLE),
    ]
    workers = (1, 2, 1, 2, 1)
    for step in range(5):
        x = 30 + step * 136
        parts += [
            rect(x - 2, 118, 134, 26, stroke=INK, radius=4),
            text(x + 65, 136, f"step {step}: worker {workers[step]}", size=13, at="middle"),
        ]
    parts += [
        line(437, 190, 437, 150, stroke=ORANGE, wide=2, head="orange"),
        '<path d="M437 190H470" stroke="#d55e00" stroke-width="2" stroke-dasharray="4 3"/>',
        text(476, 195, "all that resuming needs", size=13, fill=ORANGE),
        text(30, 186, "seed, epoch -> order", size=13),
        text(30, 206, "seed, position -> everything random about", size=13),
        text(30, 226, "the sample: crop, flip, colour, mixup, mosaic", size=13),
        text(30, 246, "the same samples for any number of workers and of processes", size=13),
    ]
    return svg(740, 268, *parts, title="The plan of a run")


DRAWINGS: dict[str, Callable[[], str]] = {
    "way": way,
    "strides": strides,
    "cells": cells,
    "loss": loss,
    "plan": plan,
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
