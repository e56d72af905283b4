"""One HTML file that needs nothing else: no request leaves it, in light and dark, wide and narrow.

What is written about a run or a data set is read by people who got the file by mail. Style, script
and pictures are therefore inside, and a content security policy forbids the rest. Every text is
escaped unless it is `Html` already.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

JPEG_QUALITY = 82  # below, thin lines of boxes get dirty
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


class Section(NamedTuple):
    """A part of a page, with an entry in its table of contents."""

    title: str
    body: str  # HTML
    note: str = ""  # a sentence under the title


class Cell(NamedTuple):
    """A cell of a table that is shown in another way than it is sorted by."""

    text: str
    value: float


Value = str | int | float | Cell | None


def page(title: str, *, lead: str = "", sections: Sequence[Section]) -> str:
    """The document; `lead` is a line under its title."""
    own = files("triscale")
    style = own.joinpath("page.css").read_text(encoding="utf-8")
    script = own.joinpath("page.js").read_text(encoding="utf-8")
    anchors = _anchors([section.title for section in sections])
    contents = "".join(
        f'<a href="#{anchor}">{escape(section.title)}</a>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    parts = "\n".join(
        f'<section id="{anchor}"><h2>{escape(section.title)}</h2>'
        + (f'<p class="note">{escape(section.note)}</p>' if section.note else "")
        + f"{section.body}</section>"
        for anchor, section in zip(anchors, sections, strict=True)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>"
        + (f"<p>{escape(lead)}</p>" if lead else "")
        + '<button id="theme" type="button" title="light or dark" aria-label="light or dark">◐'
        f"</button></header>\n<nav>{contents}</nav>\n<main>\n{parts}\n</main>\n"
        f'<dialog id="large"><img alt=""><p></p></dialog>\n<script>\n{script}</script>\n'
        "</body>\n</html>\n"
    )


def escape(text: str) -> Html:
    """The text as HTML; what is HTML already stays as it is.

    A byte of a file's name that is no character (half a surrogate pair) becomes "\\udcff".
    """
    if isinstance(text, Html):
        return text
    return Html(html.escape(text.encode("utf-8", "backslashreplace").decode(), quote=True))


def paragraph(text: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{escape(text)}</p>")


def listing(lines: Iterable[str]) -> Html:
    """Lines with dots before them; a flag such as --epochs is never broken at the end of a line."""
    items = (
        re.sub(r"--[a-z-]+", r'<span class="whole">\g<0></span>', escape(line)) for line in lines
    )
    return Html("<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>")


def code(text: str) -> Html:
    """Commands, or what a program printed."""
    return Html(f"<pre><code>{escape(text)}</code></pre>")


def details(summary: str, body: str) -> Html:
    """HTML that is shown when its summary is clicked on."""
    return Html(f"<details><summary>{escape(summary)}</summary>{body}</details>")


def facts(pairs: Iterable[tuple[str, Value]]) -> Html:
    """Tiles: what is counted, and the figure."""
    tiles = (
        f"<div><b>{_shown(value)}</b><span>{escape(name)}</span></div>" for name, value in pairs
    )
    return Html(f'<div class="facts">{"".join(tiles)}</div>')


def table(header: Sequence[str], rows: Iterable[Sequence[Value]], *, sortable: bool = True) -> Html:
    """A table; numbers stand at the right, None is a dash. A click on a header sorts by it."""
    rows = [tuple(row) for row in rows]
    head = ""
    for column, name in enumerate(header):
        text = f'<button type="button">{escape(name)}</button>' if sortable else escape(name)
        numbers = any(not isinstance(row[column], str) for row in rows)
        kind = ' class="number"' if numbers else ""
        head += f'<th scope="col"{kind}>{text}</th>'
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return Html(
        f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(image: NDArray[np.uint8], *, caption: str = "", width: int = 320) -> Html:
    """An RGB picture (H, W, 3) with its caption, no wider than `width`; a click shows it large."""
    scale = min(1.0, width / image.shape[1])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    assert done
    source = base64.b64encode(data.tobytes()).decode("ascii")
    text = escape(caption)
    return Html(
        f'<figure><img src="data:image/jpeg;base64,{source}" alt="{text}" loading="lazy" '
        f'width="{image.shape[1]}" height="{image.shape[0]}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def gallery(figures: Iterable[Html]) -> Html:
    """Pictures side by side, as many as the window is wide."""
    return Html(f'<div class="gallery">{"".join(figures)}</div>')


def svg(text: str) -> Html:
    """A drawing that is as wide as its place."""
    return Html(f'<div class="drawing">{text}</div>')


def columns(parts: Iterable[Html]) -> Html:
    """Parts side by side where there is room."""
    return Html(f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>')


def _cell(value: Value) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    if value is None or value != value:  # not a number
        return '<td class="number">&ndash;</td>'
    key = value.value if isinstance(value, Cell) else value
    return f'<td class="number" data-value="{key}">{_shown(value)}</td>'


def _shown(value: Value) -> str:
    if isinstance(value, Cell):
        return escape(value.text)
    if isinstance(value, str):
        return escape(value)
    if value is None or math.isnan(value):
        return "&ndash;"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _anchors(titles: Sequence[str]) -> list[str]:
    """A name for each title, none twice."""
    found: list[str] = []
    for title in titles:
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found.append(name)
    return found
