"""The things that stand about in the toy harbour of `scenes`, drawn from polygons and strokes.

A shape is a function `(rng, paint) -> [Part, ...]` in its own unit square: x to the right, y down,
the long side from about -1 to 1, parts from back to front. Everything that could give a class away
but its form is drawn at random and alike for all shapes: colours, outline, size, rotation, light.
The drawings are our own; there is no source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from triscale.demo.painting import Paint, Part, Points

Shape = Callable[[np.random.Generator, Paint], list[Part]]

# --- the six classes --------------------------------------------------------------------------


def balloon(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A hot-air balloon with upright gores and a basket."""
    t = np.linspace(0, 1, 24)
    wide = rng.uniform(0.62, 0.78)
    y = -1 + 1.5 * t
    x = wide * np.sin(np.pi * t**0.85) ** 0.75 * (1 - 0.25 * t) + 0.13 * t
    half = rng.uniform(0.09, 0.13)
    parts = [
        Part(_line([side * 0.13, 0.48, side * half, 0.8]), paint.dark, 0.03) for side in (-1, 1)
    ]
    parts.append(Part(_box(-half, 0.78, half, 1.0), paint.trim))
    parts.append(Part(_between(-x, x, y), paint.body))
    gores = np.linspace(-1, 1, 2 * int(rng.integers(2, 5)))
    parts += [
        Part(_between(a * x, b * x, y), paint.accent)
        for a, b in zip(gores[1::2], gores[2::2], strict=False)
    ]
    return parts


def bird(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A gull in flight, from the side, both wings up or level."""
    flap = rng.uniform(0.55, 0.95)
    body = _curve([-0.7, 0.1, -0.3, -0.08, 0.3, -0.12, 0.55, 0.05, 0.3, 0.28, -0.2, 0.28])
    wing = [-0.3, 0.02, -0.42, -0.45 * flap, -0.75, -flap, -0.28, -0.75 * flap, 0.08, -0.4 * flap]
    near = _curve([*wing, 0.22, 0.05])
    far = near * [0.9, 0.92] + [0.28, -0.02]
    return [
        Part(_line([-1, 0.02, -0.5, 0.02, -0.5, 0.22, -0.9, 0.3]), paint.body),
        Part(far, 0.75 * paint.accent),
        Part(_line([0.78, -0.05, 1.02, 0.08, 0.76, 0.12]), paint.trim),
        Part(body, paint.body),
        Part(_ellipse(0.64, 0.0, 0.22, 0.19), paint.body),
        Part(near, paint.accent),
        Part(_ellipse(0.7, -0.05, 0.05, 0.05), paint.dark),
    ]


def boat(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A sailing dinghy or a small steamer on the same kind of hull."""
    deck, keel = rng.uniform(0.38, 0.5), rng.uniform(0.82, 0.95)
    hull = _line([-0.95, deck, 1.0, deck - 0.08, 0.62, keel, -0.7, keel])
    middle = (deck + keel) / 2
    stripe = _line(
        [-0.86, middle - 0.07, 0.85, middle - 0.1, 0.77, middle + 0.03, -0.81, middle + 0.03]
    )
    parts: list[Part] = []
    if rng.random() < 0.65:
        mast = rng.uniform(-0.15, 0.15)
        sail = _curve([mast + 0.06, -0.9, mast + 0.55, -0.2, mast + 0.72, deck - 0.2], ends=True)
        parts = [
            Part(_line([mast, deck, mast, -1]), paint.dark, 0.06),
            Part(np.vstack([sail, [[mast + 0.06, deck - 0.14]]]), paint.accent),
            Part(
                _line([mast - 0.07, -0.8, mast - 0.75, deck - 0.12, mast - 0.07, deck - 0.12]),
                paint.trim,
            ),
        ]
    else:
        parts = [
            Part(_box(0.02, -0.55, 0.24, 0.1), paint.trim),
            Part(_box(0.02, -0.45, 0.24, -0.32), paint.dark),
            Part(_box(-0.55, -0.1, 0.4, deck + 0.05), paint.accent),
            *(Part(_ellipse(x, 0.14, 0.09, 0.09), paint.dark) for x in (-0.34, -0.07, 0.2)),
        ]
    return [*parts, Part(hull, paint.body), Part(stripe, paint.accent)]


def crab(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A crab from the front: shell, six legs, two claws, eyes on stalks."""
    lift, spread = rng.uniform(-0.05, 0.25), rng.uniform(0.72, 0.82)
    parts: list[Part] = []
    for side in (-1, 1):
        for reach, foot in ((0.62, 0.68), (0.8, 0.5), (0.92, 0.28)):
            leg = _line([0.3 * side, 0.12, reach * side, foot - 0.32, (reach + 0.06) * side, foot])
            parts.append(Part(leg, 0.7 * paint.body, 0.09))
        parts.append(Part(_line([0.4 * side, 0, spread * side, -0.3 - lift / 2]), paint.body, 0.13))
        angles = np.linspace(-0.5 * np.pi + 0.4, 1.5 * np.pi - 0.4, 20)  # a disc with a notch
        claw = np.stack([0.24 * np.cos(angles), 0.27 * np.sin(angles)], axis=1)
        claw = np.vstack([claw, [[0.0, 0.04]]]) * [side, 1] + [spread * side, -0.42 - lift]
        parts.append(Part(claw, paint.body))
        parts.append(Part(_line([0.17 * side, -0.1, 0.2 * side, -0.42]), paint.body, 0.06))
        parts.append(Part(_ellipse(0.2 * side, -0.46, 0.1, 0.1), np.full(3, 245.0)))
        parts.append(Part(_ellipse(0.2 * side, -0.46, 0.045, 0.045), paint.dark))
    parts.append(
        Part(_curve([-0.55, 0, -0.3, -0.3, 0.3, -0.3, 0.55, 0, 0.38, 0.4, -0.38, 0.4]), paint.body)
    )
    spots = rng.uniform([-0.28, -0.12], [0.28, 0.1], (int(rng.integers(0, 5)), 2))
    parts += [Part(_ellipse(x, y, 0.06, 0.05), paint.accent) for x, y in spots.tolist()]
    parts.append(Part(_curve([-0.18, 0.16, 0, 0.26, 0.18, 0.16], ends=True), paint.dark, 0.04))
    return parts


def fish(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A fish from the side, with stripes that follow its outline."""
    high, waist = rng.uniform(0.34, 0.56), rng.uniform(0.08, 0.13)
    t = np.linspace(0, 1, 24)
    x = -0.65 + 1.65 * t
    y = high * np.sin(np.pi * t**1.2) ** 0.8 + waist * (1 - t)
    fork = rng.uniform(0.3, 0.5)
    tail = [-0.55, 0, -0.8, -0.2, -1.0, -fork, -0.88, 0, -1.0, fork, -0.8, 0.2]
    fin = 0.95 * high
    parts = [
        Part(_line(tail), paint.accent),
        Part(
            _line([-0.25, -0.6 * fin, -0.1, -fin - 0.25, 0.3, -fin - 0.08, 0.5, -0.7 * fin]),
            paint.accent,
        ),
        Part(_line([-0.1, 0.7 * fin, -0.12, fin + 0.2, 0.25, 0.8 * fin]), paint.accent),
        Part(_between(-y, y, x)[:, ::-1], paint.body),
    ]
    for start in np.arange(3, 15, 12 // max(1, int(rng.integers(1, 4)))).tolist():
        part = slice(start, start + 3)
        parts.append(Part(_between(-y[part], y[part], x[part])[:, ::-1], paint.accent))
    return [
        *parts,
        Part(_line([0.05, 0.05, -0.15, 0.22, 0.12, 0.24]), paint.trim),
        Part(_ellipse(0.62, -0.08, 0.11, 0.11), np.full(3, 245.0)),
        Part(_ellipse(0.64, -0.08, 0.055, 0.055), paint.dark),
        Part(_line([0.94, 0.1, 0.76, 0.15]), paint.dark, 0.04),
    ]


def lighthouse(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A banded tower with a gallery, a lit lantern and a roof."""
    foot, top = rng.uniform(0.3, 0.42), rng.uniform(0.18, 0.24)
    edges = np.linspace(-0.42, 0.9, 2 * int(rng.integers(2, 4)) + 2)
    half = np.interp(edges, [-0.42, 0.9], [top, foot])
    parts = [
        Part(_line([-a, y1, a, y1, b, y2, -b, y2]), paint.accent if i % 2 else paint.body)
        for i, (a, b, y1, y2) in enumerate(zip(half, half[1:], edges, edges[1:], strict=False))
    ]
    lit = np.array([255.0, 235.0, 150.0]) if rng.random() < 0.6 else np.array([120.0, 150.0, 170.0])
    roof = [-top - 0.05, -0.72, 0, -1.0, top + 0.05, -0.72]
    return [
        *parts,
        Part(_box(-0.08, 0.62, 0.08, 0.9), paint.dark),
        Part(_box(-0.05, 0.05, 0.05, 0.2), paint.dark),
        Part(_box(-top + 0.03, -0.74, top - 0.03, -0.46), lit),
        Part(_line([0, -0.74, 0, -0.46]), paint.dark, 0.035),
        Part(_box(-top - 0.09, -0.49, top + 0.09, -0.4), paint.trim),
        Part(_line(roof) if rng.random() < 0.6 else _curve(roof, ends=True), paint.trim),
        Part(_box(-foot - 0.12, 0.88, foot + 0.12, 1.0), paint.trim),
    ]


# --- distractors: same paint and light, no class ------------------------------------------------


def rock(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A boulder with a facet."""
    angles = (np.arange(9) + rng.uniform(-0.3, 0.3, 9)) * 2 * np.pi / 9
    radius = rng.uniform(0.75, 1.0, 9)
    outline = np.stack([radius * np.cos(angles), 0.65 * radius * np.sin(angles)], axis=1)
    grey = 0.25 * paint.body + rng.uniform(50, 150)
    crack = 0.4 * outline[5:8] * [1, 0.8]
    return [Part(outline, grey), Part(crack, 0.6 * grey, 0.05)]


def starfish(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A five-armed star."""
    angles = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, rng.uniform(0.35, 0.5), 1.0)
    return [Part(np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=1), paint.body)]


def kite(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A diamond in two colours with a tail."""
    wide = rng.uniform(0.4, 0.6)
    tail = [0, 0.3, 0.12, 0.5, -0.1, 0.7, 0.1, 0.85, 0.0, 1.0]
    return [
        Part(_curve(tail, ends=True), paint.trim, 0.05),
        Part(_line([0, -1, wide, -0.4, 0, 0.35, -wide, -0.4]), paint.body),
        Part(_line([0, -1, wide, -0.4, 0, 0.35]), paint.accent),
    ]


def umbrella(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A beach umbrella: a striped half disc on a pole."""
    angles = np.linspace(0, np.pi, 24)
    y = -0.1 - rng.uniform(0.6, 0.85) * np.sin(angles)
    x = np.cos(angles)
    flat = np.full_like(y, -0.1)
    dome = [Part(np.vstack([np.stack([x, y], 1), np.stack([x, flat], 1)[::-1]]), paint.body)]
    dome += [
        Part(
            _line([x[i], y[i], x[i + 4], y[i + 4], 0.5 * x[i + 4], -0.1, 0.5 * x[i], -0.1]),
            paint.accent,
        )
        for i in (3, 9, 15)
    ]
    return [Part(_line([0, -0.2, 0, 1]), paint.dark, 0.06), *dome]


def crate(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A wooden box with crossed laths."""
    half = rng.uniform(0.6, 0.9)
    return [
        Part(_box(-0.9, -half, 0.9, half), paint.body),
        Part(_line([-0.8, -half + 0.1, 0.8, half - 0.1]), paint.accent, 0.14),
        Part(_line([-0.8, half - 0.1, 0.8, -half + 0.1]), paint.accent, 0.14),
    ]


def post(rng: np.random.Generator, paint: Paint) -> list[Part]:
    """A striped pole: a lighthouse's colours without its form."""
    half = rng.uniform(0.08, 0.14)
    edges = np.linspace(-1, 1, 7).tolist()
    return [
        Part(_box(-half, a, half, b), paint.accent if i % 2 else paint.body)
        for i, (a, b) in enumerate(pairwise(edges))
    ]


# --- geometry -----------------------------------------------------------------------------------


def _line(numbers: Sequence[float]) -> Points:
    """Points (n, 2) from x, y, x, y, ..."""
    return np.asarray(numbers, np.float64).reshape(-1, 2)


def _box(x1: float, y1: float, x2: float, y2: float) -> Points:
    return _line([x1, y1, x2, y1, x2, y2, x1, y2])


def _ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _between(left: Points, right: Points, along: Points) -> Points:
    """The outline (2n, 2) between two curves left(along) and right(along)."""
    return np.vstack([np.stack([left, along], 1), np.stack([right, along], 1)[::-1]])


def _curve(numbers: Sequence[float], *, ends: bool = False) -> Points:
    """A smooth line by cutting corners three times (Chaikin 1974); closed, or open with `ends`."""
    points = _line(numbers)
    for _ in range(3):
        following = np.roll(points, -1, axis=0)
        cut = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], 1)
        smooth = cut.reshape(-1, 2)
        points = np.vstack([points[:1], smooth[1:-3], points[-1:]]) if ends else smooth
    return points
