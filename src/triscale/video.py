"""Videos, cameras and streams through OpenCV, which brings FFmpeg along.

Written are MP4 files with MPEG-4 video: what OpenCV's free build can encode, and every desktop
player plays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale.errors import UserError
from triscale.files import flush, naming

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".mts", ".m2ts"),
)
_DEFAULT_RATE = 25.0  # frames per second where nothing sensible is stated


class VideoFrame(NamedTuple):
    """A frame and where it stands."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    number: int  # from 0, counting those that were left out
    time_ms: float  # since the start


class VideoReader:
    """The frames of a video file, of a camera (its number) or of a stream (its address).

    Raises UserError if it can't be opened. A file that ends too early gives the frames it has;
    `done` and `stated` then differ.
    """

    def __init__(self, source: Path | int | str, *, name: str, every: int = 1) -> None:
        self.live = not isinstance(source, Path)
        self._every = every
        if isinstance(source, int):
            self._capture = cv2.VideoCapture(source)
        else:  # an absolute path can't be taken for one of FFmpeg's protocols
            place = str(source.resolve() if isinstance(source, Path) else source)
            self._capture = cv2.VideoCapture(place, cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise UserError(f"{name}: {_why_not(source)}")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        # Files with a frame when there is one may state their clock's rate.
        self.rate = (rate if 0 < rate <= 1000 else _DEFAULT_RATE) / every
        stated = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.stated = int(stated) if 0 < stated < 1e9 and not self.live else None
        self.done = 0  # frames that were read or passed over

    def __iter__(self) -> Iterator[VideoFrame]:
        began = time.monotonic()
        while self._capture.grab():
            number = self.done
            if number % self._every:
                self.done += 1
                continue
            whole, image = self._capture.retrieve()
            if not whole:
                return
            self.done += 1
            elapsed = self._capture.get(cv2.CAP_PROP_POS_MSEC)
            if self.live:
                elapsed = 1000 * (time.monotonic() - began)
            pixels = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
            yield VideoFrame(pixels, number, round(elapsed, 1))

    def close(self) -> None:
        """Let go of the file or the camera."""
        self._capture.release()


class VideoWriter:
    """An MP4 file that takes its name when it is whole.

    The first frame decides its size; of an odd side the last pixel is lost, because the format
    counts in twos. `close` makes it playable.
    """

    def __init__(self, path: Path, *, rate: float) -> None:
        self._path, self._rate = path, rate
        # OpenCV chooses the container by the suffix.
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)  # width, height
        self.frames = 0

    def write(self, image: NDArray[np.uint8]) -> None:
        """Append an RGB frame (H, W, 3)."""
        height, width = image.shape[:2]
        if self._writer is None:
            self._size = (width, height)
            self._writer = self._open()
        frame = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if (width, height) != self._size:  # a stream may change; OpenCV would leave the frame out
            frame = cv2.resize(frame, self._size)
        self._writer.write(frame)
        self.frames += 1

    def _open(self) -> cv2.VideoWriter:
        # The format's clock has 16 bits, so there is no room for more digits.
        rate = round(self._rate, 3 if self._rate < 65 else 2)
        with naming(self._path, self._temporary):
            self._temporary.touch()  # says what is wrong with the folder, which OpenCV doesn't
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(self._temporary), cv2.CAP_FFMPEG, codec, rate, self._size)
        if not writer.isOpened():
            self._temporary.unlink()
            width, height = self._size
            raise UserError(
                f"{self._path}: OpenCV can't write a video of {width}x{height} pixels at "
                f"{rate:g} frames per second"
            )
        return writer

    def close(self) -> None:
        """Finish the file and look whether it is whole; UserError if not."""
        if self._writer is None:
            return
        self._writer.release()
        # OpenCV doesn't say when a disk is full: the file must open again and have all frames.
        back = cv2.VideoCapture(str(self._temporary))
        found = int(back.get(cv2.CAP_PROP_FRAME_COUNT)) if back.isOpened() else 0
        back.release()
        if found < self.frames:
            self._temporary.unlink(missing_ok=True)
            raise UserError(
                f"{self._path}: only {found} of {self.frames} frames could be written; "
                "is the disk full?"
            )
        with naming(self._path, self._temporary):
            flush(self._temporary)
            self._temporary.replace(self._path)


def _why_not(source: Path | int | str) -> str:
    if isinstance(source, int):
        return "no such camera, or it can't be opened"
    if isinstance(source, str):
        return "the stream can't be opened"
    if source.is_file() and not source.stat().st_size:
        return "the file is empty"
    return "can't be opened as a video (cut short, or in a format that FFmpeg doesn't know)"
