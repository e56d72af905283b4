"""Text as a patch of pixels, in any script that a font of this machine knows.

OpenCV's own letters are ASCII only. DejaVu Sans comes with matplotlib and has Latin, Greek,
Cyrillic, Hebrew, Arabic and more; for other scripts the fonts of the machine are looked through.
Where matplotlib is missing, as without the extra `train`, the letters are Pillow's, ASCII.
"""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_ALWAYS = "0123456789.#…"  # what a caption adds to a name
_PILLOWS = Path("Pillow")  # not a file: the letters in the package itself


@lru_cache(maxsize=512)  # a video shows the same few names and scores again and again
def text_patch(
    text: str, size: int, *, font: Path, colour: tuple[int, int, int], margin: int
) -> NDArray[np.uint8]:
    """The text on its colour, RGB (H, W, 3), in black or white, whichever is clearer.

    H, which is the same for all texts, has the room of ascenders and descenders; left and right
    of the text is a margin.
    """
    face = _face(font, size)
    ascent, descent = face.getmetrics()
    width = math.ceil(face.getlength(text)) + 2 * margin
    patch = Image.new("RGB", (width, ascent + descent), colour)
    ImageDraw.Draw(patch).text((margin, 0), text, fill=_ink_on(colour), font=face)
    pixels = np.array(patch, np.uint8)
    pixels.flags.writeable = False  # it is shared
    return pixels


@lru_cache(maxsize=4096)
def font_for(text: str) -> Path | None:
    """A font file that has every character of `text`; None if this machine has none."""
    ours = default_font()
    if text.isascii():
        return ours
    if ours == _PILLOWS:
        return None
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    wanted = {ord(letter) for letter in text + _ALWAYS if letter.isprintable()}
    for path in dict.fromkeys([str(ours), *sorted(f.fname for f in fontManager.ttflist)]):
        if "LastResort" in path:  # matplotlib's own: a box for every character there is
            continue
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # gone since the list was made, or damaged
            continue
        if font.scalable and wanted <= font.get_charmap().keys():
            return Path(path)
    return None


def writable(name: str, label: int) -> tuple[str, Path]:
    """What to call a class in a picture, and a font for it: its name, or its number, as "#3",
    where no font has the letters, which is better than empty boxes."""
    font = font_for(name)
    return (name, font) if font else (f"#{label}", default_font())


@lru_cache(maxsize=1)
def default_font() -> Path:
    """DejaVu Sans, found without importing matplotlib, which takes long; else Pillow's letters."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or not package.submodule_search_locations:
        return _PILLOWS
    return Path(package.submodule_search_locations[0]) / "mpl-data" / "fonts/ttf/DejaVuSans.ttf"


@lru_cache(maxsize=16)
def _face(path: Path, size: int) -> ImageFont.FreeTypeFont:
    face = ImageFont.load_default(size) if path == _PILLOWS else ImageFont.truetype(path, size)
    assert isinstance(face, ImageFont.FreeTypeFont), "Pillow has FreeType"
    return face


def _ink_on(colour: tuple[int, int, int]) -> str:
    """Black or white, by the contrast of WCAG 2.2, section 1.4.3."""
    red, green, blue = (((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"
