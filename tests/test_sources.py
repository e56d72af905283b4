"""Which pictures, videos, cameras and streams are meant, and what is read from them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.test_video import film
from triscale.errors import UserError
from triscale.sources import Source, count_shots, find_sources, read_shots, unique_stems


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "deep/c.bmp", "notes.txt", "deep/v.MKV", "7"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _, data = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))
        path.write_bytes(data.tobytes())
    return tmp_path / "album"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], []),
        (["b.jpg"], ["picture b.jpg"]),
        ([""], ["picture a.PNG", "picture b.jpg", "picture c.bmp", "video v.MKV"]),
        (["deep"], ["picture c.bmp", "video v.MKV"]),
        (["*.jpg"], ["picture b.jpg"]),
        (["**/*.bmp", "a.PNG"], ["picture c.bmp", "picture a.PNG"]),
        (["?.*"], ["picture a.PNG", "picture b.jpg"]),
        (["*/v*"], ["video v.MKV"]),
        (["notes.txt"], ["picture notes.txt"]),  # named outright: reading it says what is wrong
    ],
)
def test_files(words: list[str], found: list[str], album: Path) -> None:
    sources = find_sources([str(album / word) for word in words])
    assert [f"{s.kind} {Path(s.name).name}" for s in sources] == found


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("0", Source("live", "camera:0", 0)),
        ("camera:12", Source("live", "camera:12", 12)),
        ("7", Source("picture", "7", Path("7"))),  # there is a file of that name
        ("camera:7", Source("live", "camera:7", 7)),
        ("http://host/cam.mjpg", Source("live", "http://host/cam.mjpg", "http://host/cam.mjpg")),
        ("rtsp://me:secret@host/1", Source("live", "rtsp://host/1", "rtsp://me:secret@host/1")),
    ],
)
def test_cameras_and_streams(
    word: str, source: Source, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(album)
    assert find_sources([word]) == [source]


@pytest.mark.parametrize("word", ["none.jpg", "*.gif", "empty", "1234", "ftp://x", "-1"])
def test_nothing_is_meant(word: str, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    (album / "empty").mkdir()
    with pytest.raises(UserError, match="no picture or video found"):
        find_sources(["b.jpg", word])


def test_names_of_what_is_made() -> None:
    words = ["a/p.jpg", "b/P.png", "p-2.jpg", "p.mp4"]
    sources = [Source("picture", word, Path(word)) for word in words]
    sources += [Source("live", "camera:0", 0), Source("live", "rtsp://host:8/a b", "rtsp://...")]
    stems = ["p", "P-2", "p-2-2", "p-3", "camera-0", "host-8-a-b"]
    assert unique_stems(sources) == stems
    assert unique_stems([]) == []


def test_shots(tmp_path: Path) -> None:
    """Pictures and frames in order; what can't be read is told and passed over."""
    _, data = cv2.imencode(".png", np.full((4, 6, 3), 9, np.uint8))
    (tmp_path / "a.png").write_bytes(data.tobytes())
    (tmp_path / "b.png").write_bytes(data.tobytes()[:40])
    (tmp_path / "c.mp4").write_text("not a video")
    whole = film(tmp_path / "d.avi", frames=10)
    (tmp_path / "e.avi").write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    sources = find_sources([str(tmp_path)])
    assert count_shots(sources, every=4) == 2 + 3 + 3
    failed: list[str] = []
    warned: list[str] = []
    shots = list(
        read_shots(sources, every=4, failed=lambda e: failed.append(str(e)), warn=warned.append)
    )
    assert [(shot.stem, shot.frame) for shot in shots] == [
        ("a", 0),
        *(("d", frame) for frame in (0, 4, 8)),
        *(("e", frame) for frame in (0, 4)),
    ]
    assert shots[0].image.shape == (4, 6, 3)
    assert [Path(line.split(":")[0]).name for line in failed] == ["b.png", "c.mp4"]
    assert "can't be opened as a video" in failed[1]
    (line,) = warned
    assert line.startswith(f"{tmp_path / 'e.avi'}: ended after ")
    assert line.endswith(" frames; its header says 10 (cut short?)")
