"""Videos are read to their last whole frame, and what is written opens again.

The oracle is OpenCV itself, called without our code, and the frames that the tests made.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from triscale.errors import UserError
from triscale.video import VideoReader, VideoWriter


def film(path: Path, *, frames: int, size: tuple[int, int] = (64, 48), rate: float = 25) -> Path:
    """A video whose frame k is red of 20 * k above noise: AVI in Motion JPEG, else MPEG-4."""
    rng = np.random.default_rng(0)
    codec = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), codec, rate, size)
    for k in range(frames):
        frame = np.full((size[1], size[0], 3), (0, 0, 20 * k), np.uint8)
        frame[size[1] // 2 :] = rng.integers(0, 255, (size[1] - size[1] // 2, size[0], 3))
        writer.write(frame)
    writer.release()
    return path


def redness(path: Path) -> tuple[list[int], float]:
    """The red of the middle of each frame, to 10, and the frame rate."""
    capture = cv2.VideoCapture(str(path))
    found: list[int] = []
    while (read := capture.read())[0]:
        found.append(round(int(read[1][10, 10, 2]), -1))
    return found, capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "v.mkv", "v.mov"])
@pytest.mark.parametrize(("every", "numbers"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])])
def test_reading(name: str, every: int, numbers: list[int], tmp_path: Path) -> None:
    path = film(tmp_path / name, frames=7)
    reader = VideoReader(path, name=name, every=every)
    frames = list(reader)
    reader.close()
    assert [frame.number for frame in frames] == numbers
    assert [frame.time_ms for frame in frames] == [40.0 * number for number in numbers]
    assert [round(int(frame.image[10, 10, 0]), -1) for frame in frames] == [
        20 * number for number in numbers
    ]
    assert frames[0].image.shape == (48, 64, 3)
    assert (reader.done, reader.stated, reader.rate) == (7, 7, 25 / every)


@pytest.mark.parametrize("name", ["v.avi", "v.mkv"])
def test_a_video_that_is_cut_short(name: str, tmp_path: Path) -> None:
    path = film(tmp_path / name, frames=12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    reader = VideoReader(path, name=name)
    assert 3 < len(list(reader)) == reader.done < 12
    assert reader.stated == 12


@pytest.mark.parametrize("source", [Path("none.mp4"), 77])
def test_what_can_not_be_opened(source: Path | int) -> None:
    with pytest.raises(UserError, match=r"^it: (can't be opened as a video|no such camera)"):
        VideoReader(source, name="it")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").touch()
    with pytest.raises(UserError, match=r"^it: the file is empty$"):
        VideoReader(tmp_path / "v.mp4", name="it")


@pytest.mark.parametrize("rate", [0.5, 8.333333, 23.976023976, 25, 29.97002997, 119.88, 240])
def test_writing(rate: float, tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "out.mp4", rate=rate)
    for k in range(5):
        writer.write(np.full((48, 64, 3), (20 * k, 0, 0), np.uint8))
    assert not (tmp_path / "out.mp4").exists(), "not before it is whole"
    writer.close()
    frames, written = redness(tmp_path / "out.mp4")
    assert frames == [0, 20, 40, 60, 80]
    assert written == pytest.approx(rate, rel=2e-4)
    assert len(list(tmp_path.iterdir())) == 1


def test_frames_of_other_sizes(tmp_path: Path) -> None:
    """An odd side loses a pixel; a later frame of another size is fitted in."""
    writer = VideoWriter(tmp_path / "out.mp4", rate=25)
    for size in ((49, 65), (49, 65), (98, 130)):
        writer.write(np.full((*size, 3), (100, 0, 0), np.uint8))
    writer.close()
    assert redness(tmp_path / "out.mp4")[0] == [100, 100, 100]
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.read()[1].shape == (48, 64, 3)


def test_nothing_was_written(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "out.mp4", rate=25).close()
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_written(tmp_path: Path) -> None:
    """OpenCV says nothing of a folder that is none, of a size it doesn't know, of a full disk."""
    frame = np.zeros((48, 64, 3), np.uint8)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file"):
        VideoWriter(tmp_path / "file" / "out.mp4", rate=25).write(frame)
    with pytest.raises(UserError, match="can't write a video of 1x1 pixels at 25 frames"):
        VideoWriter(tmp_path / "out.mp4", rate=25).write(frame[:1, :1])
    writer = VideoWriter(tmp_path / "out.mp4", rate=25)
    writer.write(frame)
    writer.frames = 3  # as if two frames had found no room
    with pytest.raises(UserError, match="only 1 of 3 frames could be written; is the disk full"):
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
