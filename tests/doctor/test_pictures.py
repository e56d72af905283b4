"""A look at a picture agrees with what training reads, and tells what libjpeg complains of."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.doctor.sets import picture
from triscale.data.pictures import read_picture
from triscale.doctor.pictures import THUMB, look_at, look_at_all
from triscale.errors import UserError


def test_no_pictures() -> None:
    assert look_at_all([], workers=2) == []


def test_progress(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture("a"))
    steps: list[int] = []
    looks = look_at_all([str(path)] * 70, workers=0, advance=steps.append)
    assert len(looks) == sum(steps) == 70
    assert len(steps) > 1


def test_what_stderr_got_from_others_stays(tmp_path: Path) -> None:
    """Only what is said while a picture is decoded is caught; the terminal is as before."""
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), cv2.resize(picture("a"), (800, 600)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            look = look_at(str(path))
            os.write(2, b"after")
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        assert file.read() == b"after"
    assert look.complaint.startswith("Corrupt JPEG data: premature end")
    assert look.error == ""


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("part", [0, 0.02, 0.3, 0.98, 1])
def test_the_verdict_is_that_of_training(tmp_path: Path, suffix: str, part: float) -> None:
    """Decoding at a part of the size finds what decoding it whole finds."""
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), cv2.resize(picture("a"), (1200, 900)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    try:
        read_picture(path)
        expected = ""
    except UserError as error:
        expected = str(error).removeprefix(f"{path}: ")
    look = look_at(str(path))
    assert look.error == expected
    assert (look.thumb is not None) == (not expected)


def test_thumbs_are_upright(tmp_path: Path) -> None:
    """Pillow turns the picture by its EXIF orientation."""
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(cv2.resize(picture("a"), (640, 480))).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("L"))
    expected = cv2.resize(upright, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    look = look_at(str(path))
    assert look.thumb is not None
    assert np.abs(look.thumb.astype(int) - expected.astype(int)).max() <= 4
    assert look.kinds == ("turned-picture",)
