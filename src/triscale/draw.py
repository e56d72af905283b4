"""Boxes on pictures."""

from __future__ import annotations

import colorsys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.files import write_atomically
from triscale.types import Detections

Image = NDArray[np.uint8]
_WHITE = (255, 255, 255)


def draw_detections(
    image: Image, detections: Detections, *, classes: tuple[str, ...], min_score: float = 0.0
) -> Image:
    """A copy of an RGB image (H, W, 3) with boxes, class names and scores."""
    out = image.copy()
    shown = [k for k, score in enumerate(detections.scores) if score >= min_score]
    for k in reversed(shown):  # the best last, on top
        label = int(detections.labels[k])
        text = f"{classes[label]} {detections.scores[k]:.2f}"
        _box(out, detections.boxes[k], text, _colour(label, len(classes)))
    return out


def draw_truth(image: Image, boxes: NDArray[np.float32]) -> Image:
    """A copy of an RGB image with ground-truth boxes (n, 4), thin and white."""
    out = image.copy()
    for box in boxes:
        x1, y1, x2, y2 = np.round(box).astype(int).tolist()
        cv2.rectangle(out, (x1, y1), (x2, y2), (0, 0, 0), 3, cv2.LINE_AA)
        cv2.rectangle(out, (x1, y1), (x2, y2), _WHITE, 1, cv2.LINE_AA)
    return out


def write_picture(path: Path, image: Image) -> None:
    """Write an RGB image as JPEG or PNG, by the suffix, atomically."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix.lower() in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    assert done, path
    write_atomically(path, data.tobytes())


def contact_sheet(images: list[Image], *, columns: int, width: int = 360) -> Image:
    """Images side by side on one sheet, each scaled to `width` pixels."""
    scaled = [cv2.resize(i, (width, round(i.shape[0] * width / i.shape[1]))) for i in images]
    height = max(i.shape[0] for i in scaled)
    rows = -(-len(scaled) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for k, image in enumerate(scaled):
        y, x = k // columns * height, k % columns * width
        sheet[y : y + image.shape[0], x : x + width] = image
    return sheet


def _colour(label: int, num_classes: int) -> tuple[int, int, int]:
    """Hues spread over the classes, so that neighbours in the list stay apart."""
    hue = label * 0.618034 % 1 if num_classes > 6 else label / num_classes  # golden ratio steps
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _box(image: Image, box: NDArray[np.float32], text: str, colour: tuple[int, int, int]) -> None:
    """Draw one box and its caption, which stays inside the picture."""
    x1, y1, x2, y2 = np.round(box).astype(int).tolist()
    line = max(1, round(max(image.shape[:2]) / 300))
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, line, cv2.LINE_AA)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, max(image.shape[:2]) / 1200)
    (width, height), below = cv2.getTextSize(text, font, scale, line)
    left = int(np.clip(x1, 0, max(0, image.shape[1] - width)))
    bottom = y1 - below if y1 - height - below >= 0 else min(y1 + height + below, image.shape[0])
    cv2.rectangle(image, (left, bottom - height - 2), (left + width, bottom + below), colour, -1)
    dark = sum(colour) > 380
    cv2.putText(
        image, text, (left, bottom), font, scale, (0, 0, 0) if dark else _WHITE, line, cv2.LINE_AA
    )
