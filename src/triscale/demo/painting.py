"""Pixels for the pictures of `scenes`: drawing a form, the landscape behind it, the camera.

Forms come as polygons and strokes (`Part`) in a unit square: x to the right, y down, the long side
from about -1 to 1. Landscapes are gradients with smooth noise. All of it is our own; no source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# Parts are drawn without antialiasing at this multiple, then averaged down: the colours then come
# out multiplied by their coverage, which is what `paste` needs, with no fringe of a background.
SUPERSAMPLING = 4

Points = NDArray[np.float64]
Colour = NDArray[np.float64]  # (3,) RGB, 0..255


class Paint(NamedTuple):
    """The colours of one object."""

    body: Colour
    accent: Colour  # stripes, sails, fins
    trim: Colour  # small parts
    dark: Colour  # outlines, eyes, doors
    outline: float  # width of the outlines in unit coordinates; 0 = none


class Part(NamedTuple):
    """A filled polygon, or a stroke along an open line where `width` > 0."""

    points: Points  # (n, 2)
    colour: Colour
    width: float = 0.0


class Sprite(NamedTuple):
    """A drawn object before it is placed."""

    pixels: NDArray[np.float32]  # (h, w, 4): RGB times coverage, 0..255; coverage, 0..1
    centre: tuple[int, int]  # column and row of the unit square's origin in `pixels`


def random_paint(rng: np.random.Generator) -> Paint:
    """Colours that tell nothing about the class; body and accent differ in hue or brightness."""
    hue = rng.uniform(0, 180)
    body = _hsv(hue, rng.uniform(0.25, 0.9), rng.uniform(0.5, 1.0))
    if rng.random() < 0.4:
        accent = _hsv(hue, rng.uniform(0.0, 0.15), rng.uniform(0.85, 1.0))  # a near white
    else:
        accent = _hsv(hue + rng.uniform(40, 140), rng.uniform(0.4, 0.9), rng.uniform(0.4, 1.0))
    trim = _hsv(rng.uniform(0, 180), rng.uniform(0.1, 0.8), rng.uniform(0.4, 1.0))
    outline = rng.uniform(0.02, 0.05) if rng.random() < 0.75 else 0.0
    return Paint(body, accent, trim, 0.22 * body, outline)


def render(
    parts: Sequence[Part],
    paint: Paint,
    *,
    size: float,
    turn: float = 0.0,
    flip: bool = False,
    stretch: float = 1.0,
    light: tuple[float, float] = (-0.6, -0.8),
) -> Sprite:
    """The parts as pixels; `size` is the length of the unit square's side, `turn` in radians.

    `light` is the direction (x, y) the light comes from: the object is shaded like a cushion.
    """
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = size / 2 * np.array([[cos, sin], [-sin, cos]])  # rows times matrix: turns clockwise
    matrix = np.diag([-stretch if flip else stretch, 1 / stretch]) @ matrix
    outlines = [part.points @ matrix for part in parts]
    border = size / 2 * max(paint.outline, *(part.width for part in parts)) / 2 + 1
    low = np.floor(np.min([p.min(0) for p in outlines], axis=0) - border).astype(int)
    high = np.ceil(np.max([p.max(0) for p in outlines], axis=0) + border).astype(int)
    width, height = (high - low).tolist()

    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING, 4), np.uint8)
    thickness = size / 2 * SUPERSAMPLING
    line = (*paint.dark.tolist(), 255.0)
    for part, points in zip(parts, outlines, strict=True):
        # OpenCV puts pixel centres on whole numbers; ours are at halves.
        vertices = np.round((points - low) * SUPERSAMPLING - 0.5).astype(np.int32)
        colour = (*part.colour.tolist(), 255.0)
        if part.width:
            cv2.polylines(canvas, [vertices], False, colour, max(1, round(part.width * thickness)))
            continue
        cv2.fillPoly(canvas, [vertices], colour)
        if paint.outline:
            cv2.polylines(canvas, [vertices], True, line, max(1, round(paint.outline * thickness)))
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    pixels = small.astype(np.float32)
    pixels[..., 3] /= 255
    pixels[..., :3] *= _shading(pixels[..., 3], size, light)[..., None]
    np.clip(pixels[..., :3], 0, 255 * pixels[..., 3:], out=pixels[..., :3])
    return Sprite(pixels, (int(-low[0]), int(-low[1])))


def paste(canvas: NDArray[np.float32], sprite: Sprite, *, at: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw the sprite with its origin at column, row `at`; returns what it covers, (H, W)."""
    covered = np.zeros(canvas.shape[:2], np.bool_)
    height, width = canvas.shape[:2]
    left, top = at[0] - sprite.centre[0], at[1] - sprite.centre[1]
    x1, y1 = max(left, 0), max(top, 0)
    x2 = min(left + sprite.pixels.shape[1], width)
    y2 = min(top + sprite.pixels.shape[0], height)
    if x1 < x2 and y1 < y2:
        pixels = sprite.pixels[y1 - top : y2 - top, x1 - left : x2 - left]
        region = canvas[y1:y2, x1:x2]
        region *= 1 - pixels[..., 3:]
        region += pixels[..., :3]
        covered[y1:y2, x1:x2] = pixels[..., 3] >= 0.5
    return covered


def shadow(size: float) -> Sprite:
    """A flat shadow for an object of `size` to stand in."""
    black = np.zeros(3)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outline = np.stack([0.8 * np.cos(angles), 0.14 * np.sin(angles)], axis=1)
    paint = Paint(black, black, black, black, 0.0)
    drawn = render([Part(outline, black)], paint, size=size)
    return Sprite(0.3 * drawn.pixels, drawn.centre)


class _Mood(NamedTuple):
    """The colours of weather and hour."""

    sky_top: tuple[int, int, int]
    sky_low: tuple[int, int, int]
    sea_far: tuple[int, int, int]
    sea_near: tuple[int, int, int]
    sand: tuple[int, int, int]


_MOODS = (
    _Mood((70, 150, 230), (195, 228, 250), (70, 150, 200), (25, 95, 150), (232, 208, 155)),
    _Mood((40, 165, 220), (185, 240, 240), (80, 205, 205), (15, 125, 160), (246, 230, 190)),
    _Mood((105, 120, 190), (252, 196, 165), (180, 150, 175), (75, 90, 140), (205, 168, 145)),
    _Mood((65, 45, 110), (250, 140, 90), (165, 90, 115), (48, 48, 100), (158, 116, 104)),
    _Mood((18, 26, 62), (66, 88, 140), (42, 64, 108), (18, 30, 60), (92, 92, 112)),
    _Mood((150, 162, 172), (208, 213, 215), (125, 146, 152), (74, 100, 106), (186, 176, 154)),
)


def backdrop(rng: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray[np.float32], int]:
    """Sky, hills, sea and perhaps a beach: a picture (H, W, 3) and the row of the horizon."""
    height, width = size
    mood = _MOODS[rng.integers(len(_MOODS))]
    top, low, far, near, sand = (np.clip(np.array(c) + rng.normal(0, 10, 3), 0, 255) for c in mood)
    horizon = int(height * rng.uniform(0.25, 0.5))
    ramp = np.linspace(0, 1, horizon)[:, None]
    sky = (top + (low - top) * ramp)[:, None].repeat(width, axis=1).astype(np.float32)
    if rng.random() < 0.6:  # a sun or a moon with its halo
        disc = np.zeros((horizon, width), np.float32)
        at = (int(rng.uniform(0, width)), int(rng.uniform(0.1, 1) * horizon))
        cv2.circle(disc, at, int(height * rng.uniform(0.03, 0.06)), 1.0, -1, cv2.LINE_AA)
        halo = cv2.GaussianBlur(disc, (0, 0), height / 14)
        disc = np.maximum(disc, 4 * halo).clip(0, 1).astype(np.float32)
        sky = _blend(sky, np.minimum(low * 1.1 + 40, 255), 0.85 * disc)
    clouds = np.zeros((horizon, width), np.float32)
    for octave in (1, 2, 4, 8):
        clouds += _noise(rng, (horizon, width), (height / 6 / octave, width / 5 / octave)) / octave
    clouds = (0.8 * clouds + rng.uniform(-0.8, 0.6)).clip(0, 1).astype(np.float32)
    sky = _blend(sky, low * 0.6 + 102, 0.8 * clouds)

    depth = np.linspace(0, 1, height - horizon)[:, None]
    sea = (far + (near - far) * depth**0.7)[:, None].repeat(width, axis=1).astype(np.float32)
    extent = (height - horizon, width)
    ripples = _noise(rng, extent, (3.0, 24.0)) + _noise(rng, extent, (7.0, 48.0))
    sea += (rng.uniform(4, 14) * ripples * (0.4 + depth).astype(np.float32))[..., None]

    columns = np.arange(width)
    canvas = np.concatenate([sky, sea])
    for layer in range(int(rng.integers(0, 3))):  # hills, the nearer the darker
        line = _noise(rng, (1, width), (1.0, width / rng.uniform(4, 9)))[0]
        crest = horizon - height * (0.05 + 0.05 * line - 0.02 * layer)
        colour = low + (far * 0.6 - low) * (0.45 + 0.35 * layer)
        _fill(canvas[:horizon], columns, crest, np.full(width, horizon), colour)
    if rng.random() < 0.65:
        slope = rng.uniform(-0.2, 0.2) * (columns / width - 0.5)
        shore = height * (rng.uniform(0.68, 0.95) + slope)
        shore += height * 0.02 * _noise(rng, (1, width), (1.0, width / 8))[0]
        bottom = np.full(width, height)
        _fill(canvas, columns, shore - 0.02 * height, bottom, 0.4 * near + 150)  # foam
        _fill(canvas, columns, shore, bottom, 0.75 * sand)  # wet
        _fill(canvas, columns, shore + 0.03 * height, bottom, sand)
        grain = _noise(rng, size, (1.5, 1.5)) + _noise(rng, size, (12.0, 30.0))
        canvas += (6 * grain * (np.arange(height)[:, None] > shore))[..., None].astype(np.float32)
    return canvas, horizon


def photograph(canvas: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a cheap camera makes of it: exposure, tint, uneven light, blur and noise."""
    height, width = canvas.shape[:2]
    tint = rng.uniform(0.75, 1.12) * rng.uniform(0.94, 1.06, 3)
    slope = rng.uniform(-0.15, 0.15, 2)
    across = slope[0] * np.linspace(-1, 1, width) + 1
    down = slope[1] * np.linspace(-1, 1, height)[:, None]
    picture = canvas * (across + down).astype(np.float32)[..., None] * tint.astype(np.float32)
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.0))
    grain = rng.standard_normal((height, width, 1), np.float32)
    picture += np.float32(rng.uniform(1, 7)) * grain
    return cv2.convertScaleAbs(picture.clip(0, 255)).astype(np.uint8, copy=False)  # rounds


def _noise(
    rng: np.random.Generator, size: tuple[int, int], grain: tuple[float, float]
) -> NDArray[np.float32]:
    """Smooth noise (H, W) of deviation about 1 with features of `grain` (height, width) pixels."""
    coarse = (max(1, round(size[0] / grain[0])) + 3, max(1, round(size[1] / grain[1])) + 3)
    values = rng.standard_normal(coarse, np.float32)
    return cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def _blend(
    picture: NDArray[np.float32], colour: NDArray[np.float64], amount: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`picture` (H, W, 3) with `amount` (H, W) of a colour over it."""
    weight = amount[..., None]
    return ((1 - weight) * picture + weight * colour.astype(np.float32)).astype(
        np.float32, copy=False
    )


def _fill(
    canvas: NDArray[np.float32],
    columns: NDArray[np.int64],
    upper: NDArray[np.float64],
    lower: NDArray[np.int64],
    colour: NDArray[np.float64],
) -> None:
    """Fill the canvas between two lines y(column), antialiased."""
    outline = np.concatenate([np.stack([columns, upper], 1), np.stack([columns, lower], 1)[::-1]])
    points = np.round(outline * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], colour.clip(0, 255).tolist(), cv2.LINE_AA, shift=4)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB of a hue in half degrees (0..180) with saturation and value in 0..1."""
    sector = (hue % 180) / 30
    steps = (np.array([5.0, 3.0, 1.0]) + sector) % 6
    return 255 * value * (1 - saturation * np.clip(np.minimum(steps, 4 - steps), 0, 1))


def _shading(
    coverage: NDArray[np.float32], size: float, light: tuple[float, float]
) -> NDArray[np.float32]:
    """Brightness (h, w) of a cushion over the covered area, lit from direction `light`."""
    height = cv2.GaussianBlur(coverage, (0, 0), max(1.0, size / 14), borderType=cv2.BORDER_CONSTANT)
    slope_y, slope_x = np.gradient(height)
    # The surface falls off towards the rim: where it falls towards the light, it is bright.
    tilt = -(light[0] * slope_x + light[1] * slope_y)
    return (1 + size / 12 * tilt).astype(np.float32)
