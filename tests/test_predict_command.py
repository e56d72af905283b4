"""`triscale predict` on videos and on folders with broken files, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from tests.test_video import film, redness
from triscale.cli import main


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return film(tmp_path / "clip.avi", frames=9)


def test_a_video(
    trained: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its frames as lines and as a video of the same rate and size."""
    words = ["predict", str(trained), str(clip), "--json", "--out", str(tmp_path / "out")]
    assert main([*words, "--every", "2", "--score", "1", "--batch-size", "3"]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [(line["frame"], line["time_ms"]) for line in lines] == [
        (k, 40.0 * k) for k in (0, 2, 4, 6, 8)
    ]
    assert all(list(line) == ["video", "size", "frame", "time_ms", "detections"] for line in lines)
    assert all((line["video"], line["size"]) == (str(clip), [64, 48]) for line in lines)
    assert printed.err == ""
    assert redness(tmp_path / "out" / "clip.mp4") == ([0, 40, 80, 120, 160], 12.5)


def test_a_video_that_is_cut_short(
    trained: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it has is written; one line says how much that is."""
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 7 // 10])
    out = tmp_path / "out"
    assert main(["predict", str(trained), str(clip), "--score", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    frames = len(redness(out / "clip.mp4")[0])
    assert 2 < frames < 9
    assert printed.err == (
        f"triscale: warning: {clip}: ended after {frames} frames; its header says 9 (cut short?)\n"
    )
    assert printed.out == f"{clip}: {frames} frames: no objects\n1 drawn video in {out}\n"


def test_broken_pictures_do_not_end_it(
    trained: Path, devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each, everything else is written, and the exit code tells."""
    whole = (devkit / "VOC2007" / "JPEGImages" / "000001.jpg").read_bytes()
    album = tmp_path / "album"
    album.mkdir()
    for k in range(8):
        (album / f"{k}.jpg").write_bytes(whole[:900] if k in (2, 5) else whole)
    words = ["predict", str(trained), str(album), "--coco", str(tmp_path / "c.json")]
    words += ["--yolo", str(tmp_path / "yolo"), "--json", "--score", "0.0001"]
    assert main(words) == 2
    printed = capsys.readouterr()
    first, second, last = printed.err.splitlines()
    assert first.startswith(f"triscale: {album / '2.jpg'}: ")
    assert second.startswith(f"triscale: {album / '5.jpg'}: ")
    assert last.startswith("triscale: error: 2 of 8 sources couldn't be read")
    good = [0, 1, 3, 4, 6, 7]
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [Path(line["image"]).stem for line in lines] == [str(k) for k in good]
    numbers = {row["image_id"] for row in json.loads((tmp_path / "c.json").read_text())}
    assert numbers == set(good)
    assert {path.name for path in (tmp_path / "yolo").iterdir()} == {
        "classes.txt",
        *(f"{k}.txt" for k in good),
    }
    assert not (tmp_path / "predictions").exists()


def test_labels(
    trained: Path, devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(devkit / "VOC2007" / "JPEGImages" / "000001.jpg")
    words = ["predict", str(trained), picture, "--json", "--score", "0"]
    assert main([*words, "--labels", "boat,bird"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert {found["label"] for found in json.loads(line)["detections"]} == {"boat", "bird"}
    assert main([*words, "--labels", "boot"]) == 2
    assert "no class is named 'boot'; did you mean 'boat'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--every 0", "--every: expected at least 1, got 0"),
        ("--batch-size 0", "--batch-size: expected at least 1, got 0"),
        ("--coco {tmp}/there.json", "there.json: is there already"),
        ("--coco {tmp}/new.json --yolo {tmp}/labels", "holds text files already"),
    ],
)
def test_mistakes(
    flags: str,
    message: str,
    trained: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, and nothing is touched."""
    (tmp_path / "there.json").write_text("precious")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    assert main(["predict", str(trained), str(clip), *flags.format(tmp=tmp_path).split()]) == 2
    printed = capsys.readouterr()
    assert (printed.out, message in printed.err) == ("", True)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.json").read_text() == "precious"


def test_ctrl_c_leaves_whole_files(trained: Path, tmp_path: Path) -> None:
    clip = film(tmp_path / "clip.mkv", frames=3000)
    out, coco = tmp_path / "out", tmp_path / "c.json"
    words = ["predict", str(trained), str(clip), "--json", "--out", str(out), "--coco", str(coco)]
    process = subprocess.Popen(
        [sys.executable, "-m", "triscale", *words, "--score", "0.0001"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=60)
    lines = 1 + len(rest.splitlines())
    assert process.returncode == 130
    assert f"what was found in {lines} pictures and frames is written" in said
    assert lines < 3000
    capture = cv2.VideoCapture(str(out / "clip.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == lines
    assert capture.read()[0]
    assert json.loads(coco.read_text())
    assert sorted(path.name for path in out.iterdir()) == ["clip.mp4"]
