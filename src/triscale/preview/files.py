"""The files of a preview: a picture of each sample, a sheet of all, and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.anchors import Anchors
from triscale.draw import contact_sheet, write_picture
from triscale.files import write_atomically
from triscale.page import Html, Section, facts, figure, gallery, listing, page, table
from triscale.preview.drawing import draw_seen, summary
from triscale.preview.figures import TINY, advice, class_rows, figures_of, stride_rows
from triscale.preview.seen import Seen, pictures_of

ON_PAGE, PAGE_WIDTH = 48, 800  # pictures, pixels: the page stays below some 6 MB
SHEET_COLUMNS, SHEET_WIDTH = 4, 480
_LEGEND = (
    "A box is an object, the dashed box the anchor that it is compared with, the filled square the "
    "cell whose prediction must find it; thin ones are further predictions of the same object. A "
    "colour is a stride: orange 32, blue 16, green 8. Red and crossed out: another object has the "
    "cell. x0.62 is an object's weight in a mixup. A click shows a picture large."
)


def write_preview(
    out: Path,
    samples: Iterable[Seen],
    *,
    title: str,
    lead: str,
    classes: Sequence[str],
    ids: Sequence[str],
    anchors: Anchors,
    notes: Sequence[str] = (),
    on_sample: Callable[[], None] = lambda: None,
) -> list[Seen]:
    """Write everything into the folder `out`, in the place of an earlier preview.

    `ids` are the short names of the index's pictures, `notes` sentences for the page. The samples
    come back without their pixels.
    """
    seen: list[Seen] = []
    small: list[NDArray[np.uint8]] = []
    shown: list[Html] = []
    for k, sample in enumerate(samples):
        drawn = draw_seen(sample, classes)
        out.mkdir(parents=True, exist_ok=True)  # not before there is something to write
        write_picture(out / f"sample-{k:04d}.png", drawn)
        seen.append(sample._replace(image=sample.image[:0]))
        if k < ON_PAGE:
            size = SHEET_WIDTH, round(drawn.shape[0] * SHEET_WIDTH / drawn.shape[1])
            drawn_small = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
            small.append(np.asarray(drawn_small, np.uint8))
            names = ", ".join(ids[image] for image in pictures_of(sample.draw))
            shown.append(figure(drawn, caption=f"{summary(sample)} ({names})", width=PAGE_WIDTH))
        on_sample()
    for old in sorted(out.glob("sample-[0-9][0-9][0-9][0-9].png"))[len(seen) :]:
        old.unlink()  # of an earlier preview that had more
    columns = min(SHEET_COLUMNS, len(small))
    write_picture(out / "sheet.png", contact_sheet(small, columns=columns, width=SHEET_WIDTH))
    more = f" The first {ON_PAGE} of {len(seen)}; the others lie beside this page."
    tiles = [(f"{f.name} ({f.detail})" if f.detail else f.name, f.value) for f in figures_of(seen)]
    sections = [
        Section("Figures", facts(tiles) + listing([*advice(seen), *notes])),
        Section("Samples", gallery(shown), _LEGEND + (more if len(seen) > ON_PAGE else "")),
        Section(
            "Strides and anchors",
            table(("stride", "anchor", "asked for", "given", "lost"), stride_rows(seen, anchors)),
            "Predictions that objects ask for, and that they get.",
        ),
        Section(
            "Classes",
            table(
                ("class", "objects", "lost", "unlike every anchor", f"below {TINY} px"),
                class_rows(seen, classes),
            ),
        ),
    ]
    text = page(title, lead=lead, sections=sections)
    write_atomically(out / "preview.html", text.encode())
    return seen
