"""Boxes and two sets of anchors as a plot: their sizes, and how well they overlap."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

from triscale.anchors import STRIDES, Anchors
from triscale.files import write_atomically
from triscale.kmeans import Shapes, fit_of, flat, shape_iou

MOST_POINTS = 5000
_COLOURS = ("#e69f00", "#0072b2", "#009e73")  # of the strides; Okabe and Ito 2008
_SETS = (("as they are", "s", "#555555"), ("by k-means", "o", "#cc3311"))


def write_plot(
    path: Path, shapes: Shapes, usual: Anchors, found: Anchors, *, rng: np.random.Generator
) -> None:
    """Write the plot of boxes (m, 2), in pixels, and both sets of anchors as PNG; m >= 1."""
    # 0.7 s, and only here
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(12, 5.6), layout="constrained")
    FigureCanvasAgg(drawing)
    sizes, overlaps = drawing.subplots(1, 2)
    points = rng.choice(shapes, min(len(shapes), MOST_POINTS), replace=False)
    sizes.scatter(*points.T, s=5, c="#999999", alpha=0.35, linewidths=0, label="boxes")
    for anchors, (name, marker, edge) in zip((usual, found), _SETS, strict=True):
        for stride, colour, row in zip(STRIDES, _COLOURS, anchors, strict=False):
            sizes.scatter(
                *np.array(row).T,
                s=90,
                c=colour,
                marker=marker,
                edgecolors="black",
                label=f"{name}, stride {stride}",
            )
        best = shape_iou(shapes, flat(anchors)).max(1)
        recall, mean = fit_of(shapes, flat(anchors))
        label = f"{name}: {recall:.0%} above .5, mean {mean:.2f}"
        overlaps.hist(best, bins=50, range=(0, 1), histtype="step", lw=2, color=edge, label=label)
    sizes.set(xscale="log", yscale="log", aspect="equal", title="Boxes and anchors")
    sizes.set(xlabel="width in pixels", ylabel="height in pixels")
    overlaps.axvline(0.5, color="black", lw=1, ls=":")
    overlaps.set(xlabel="IoU with the anchor of the nearest shape", ylabel="boxes", xlim=(0, 1))
    overlaps.set_title("How well they overlap")
    for axes in (sizes, overlaps):
        axes.grid(alpha=0.2, which="both")
        axes.legend(fontsize=8, loc="upper left")
    data = BytesIO()
    drawing.savefig(data, format="png", dpi=110)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data.getvalue())
