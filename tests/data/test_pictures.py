"""Pictures: the decoded array and the header's answer agree with Pillow and with each other."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from triscale.data.pictures import picture_size, picture_sizes, read_picture, reduced
from triscale.errors import UserError


def encoded(format: str, *, orientation: int = 1, mode: str = "RGB") -> bytes:
    """A 20 x 30 picture, smooth so that JPEG keeps it nearly exactly."""
    y, x = np.mgrid[0:20, 0:30]
    pixels = np.stack([8 * y, 8 * x, 255 - 8 * x], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    options = {} if format == "BMP" else {"exif": exif}
    quality = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    lossless = {"lossless": True} if format == "WEBP" else {}
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(stream, format, **options, **quality, **lossless)
    return stream.getvalue()


def with_late_exif(png: bytes) -> bytes:
    """The eXIf chunk moved behind the pixels, as some tools write it."""
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    rest = png[:start] + png[end:]
    iend = rest.index(b"IEND") - 4
    return rest[:iend] + png[start:end] + rest[iend:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not a picture"),
        (b"\xff\xd8", "cut short"),
        (b"\xff\xd8\xff\xd9", "without a picture"),
        (encoded("JPEG")[:300], "cut short"),
        (encoded("PNG")[:20], "not a picture"),
        (encoded("PNG")[:-4], None),
    ],
)
def test_broken_headers_are_refused(tmp_path: Path, data: bytes, words: str | None) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    if words is None:  # only the last checksum is missing: all pixels and IEND are there
        assert picture_size(path) == (20, 30)
        return
    for function in (picture_size, read_picture):
        with pytest.raises(UserError, match=words) as caught:
            function(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("part", [0.6, 0.98])
def test_truncated_pictures_are_refused(tmp_path: Path, format: str, part: float) -> None:
    data = encoded(format)
    path = tmp_path / "a"
    path.write_bytes(data[: int(len(data) * part)])
    for reduction in (1, 2, 8):
        with pytest.raises(UserError, match="a: "):
            read_picture(path, reduction=reduction)


def test_a_jpeg_thumbnail_does_not_hide_the_truncation(tmp_path: Path) -> None:
    data = encoded("JPEG")
    thumbnail = b"\xff\xe2" + struct.pack(">H", 4 + 2) + b"\xff\xd9\xff\xd9"
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + thumbnail + data[2:-2])
    assert picture_size(path) == (20, 30)
    with pytest.raises(UserError, match="end-of-image"):
        read_picture(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(
    tmp_path: Path, format: str, orientation: int
) -> None:
    data = encoded(format, orientation=orientation)
    path = tmp_path / "a"
    path.write_bytes(data)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    ours = read_picture(path)
    assert picture_size(path) == ours.shape[:2] == upright.shape[:2]
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - upright).max() <= (3 if format == "JPEG" else 0)


def test_what_opencv_turns_by_itself_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 4.13 it left WebP as stored."""
    path, decode = tmp_path / "a", cv2.imdecode
    path.write_bytes(encoded("WEBP", orientation=6))
    expected = read_picture(path)

    def older(data: NDArray[np.uint8], mode: int) -> Any:
        return decode(data, mode | cv2.IMREAD_IGNORE_ORIENTATION)

    monkeypatch.setattr(cv2, "imdecode", older)
    assert expected.shape == (30, 20, 3)
    np.testing.assert_array_equal(read_picture(path), expected)


def test_exif_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(with_late_exif(encoded("PNG", orientation=6)))
    assert picture_size(path) == read_picture(path).shape[:2] == (30, 20)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("orientation", [0, 1])
def test_a_jpeg_is_reduced_as_libjpeg_does(
    tmp_path: Path, reduction: int, orientation: int
) -> None:
    data = encoded("JPEG", orientation=orientation)
    path = tmp_path / "a"
    path.write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (30 // reduction, 20 // reduction))
        expected = np.asarray(ImageOps.exif_transpose(image))
    ours = read_picture(path, reduction=reduction)
    assert ours.shape[:2] == reduced(picture_size(path), reduction)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_the_squares_of_a_turned_jpeg_begin_where_the_upright_picture_does(
    tmp_path: Path, reduction: int, orientation: int
) -> None:
    """30x20 pixels: libjpeg's incomplete squares would come first once the picture is turned."""
    path = tmp_path / "a"
    path.write_bytes(encoded("JPEG", orientation=orientation))
    whole, ours = read_picture(path), read_picture(path, reduction=reduction)
    rows, columns = whole.shape[0] // reduction, whole.shape[1] // reduction
    squares = whole[: rows * reduction, : columns * reduction].reshape(
        rows, reduction, columns, reduction, 3
    )
    assert ours.shape[:2] == reduced(picture_size(path), reduction)
    np.testing.assert_allclose(ours[:rows, :columns], squares.mean((1, 3)), atol=0.51)


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_other_pictures_are_averaged(tmp_path: Path, format: str, reduction: int) -> None:
    data = encoded(format)
    path = tmp_path / "a"
    path.write_bytes(data)
    ours = read_picture(path, reduction=reduction)
    assert ours.shape[:2] == reduced((20, 30), reduction)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.reduce(reduction)).astype(int)
    whole = slice(20 // reduction), slice(30 // reduction)
    assert np.abs(ours - expected)[whole].max() <= 1
    # Beyond, Pillow averages what there is, and we what would be there: the last row or column.
    assert np.abs(ours - expected).max() <= 4 * reduction


@pytest.mark.parametrize(
    ("format", "mode"),
    [("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "1"), ("JPEG", "L"), ("JPEG", "CMYK")],
)
def test_every_mode_becomes_rgb(tmp_path: Path, format: str, mode: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(encoded(format, mode=mode))
    assert read_picture(path).shape == (20, 30, 3)
    assert read_picture(path, reduction=4).shape == (5, 8, 3)


def test_bytes_between_the_segments_are_passed_over(tmp_path: Path) -> None:
    data = encoded("JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + b"\0\0\xff\xff" + data[3:])
    assert picture_size(path) == (20, 30)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (20_000, 20_000)])
def test_impossible_and_huge_sizes_are_refused(tmp_path: Path, height: int, width: int) -> None:
    head = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for function in (picture_size, read_picture):
        with pytest.raises(UserError, match=f"{width}x{height} pixels"):
            function(path)


def test_many_sizes_keep_their_order_and_errors_their_place(tmp_path: Path) -> None:
    assert picture_sizes([]) == []
    paths = [tmp_path / f"{i}.png" for i in range(200)]
    for i, path in enumerate(paths):
        Image.new("RGB", (i + 1, 7)).save(path)
    paths[70] = tmp_path / "missing.png"
    sizes = picture_sizes(paths)
    assert [size for size in sizes if isinstance(size, tuple)] == [
        (7, i + 1) for i in range(200) if i != 70
    ]
    assert "missing.png: can't be read (No such file" in str(sizes[70])


def test_real_pictures_have_the_size_that_pillow_says(shared: Path) -> None:
    paths = sorted((shared / "data").glob("*/**/*.jpg"))[::10]
    assert len(paths) > 100
    for path, size in zip(paths, picture_sizes(paths), strict=True):
        with Image.open(path) as picture:
            assert size == ImageOps.exif_transpose(picture).size[::-1]
