"""The embedded data set: reproducible, correctly annotated, and careful with folders."""

from __future__ import annotations

import hashlib
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triscale.demo import painting, sprites
from triscale.demo.scenes import CLASSES, MARKER, Placed, Scene, annotate, draw_scene, write_scenes
from triscale.errors import UserError

SIZE = (240, 320)


def scene(seed: int, number: int, size: tuple[int, int] = SIZE) -> Scene:
    return draw_scene(np.random.default_rng(np.random.SeedSequence([seed, number])), size)


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def rectangle(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((20, 40), np.bool_)
    mask[y1:y2, x1:x2] = True
    return mask


# The expectations are worked out by hand from the rectangles.
@pytest.mark.parametrize(
    ("placed", "expected"),
    [
        ([], []),
        # One object, fully seen.
        ([Placed(2, rectangle(3, 4, 23, 14), 200)], [(2, (3, 4, 23, 14), False, False)]),
        # A quarter of it lies beyond the border.
        ([Placed(2, rectangle(0, 4, 15, 14), 200)], [(2, (0, 4, 15, 14), False, True)]),
        # The right half is hidden by a distractor, which itself is not annotated.
        (
            [Placed(0, rectangle(0, 0, 20, 10), 200), Placed(-1, rectangle(10, 0, 30, 20), 400)],
            [(0, (0, 0, 10, 10), True, False)],  # half is enough, but 10 px are too small
        ),
        # 40 % visible: difficult. The later object comes first, and is whole.
        (
            [Placed(0, rectangle(0, 0, 20, 20), 400), Placed(1, rectangle(0, 8, 40, 20), 480)],
            [(1, (0, 8, 40, 20), False, False), (0, (0, 0, 20, 8), True, False)],
        ),
        # 10 % visible: not annotated, nor is what lies outside of the picture.
        (
            [
                Placed(3, rectangle(0, 0, 0, 0), 50),
                Placed(0, rectangle(0, 0, 20, 20), 400),
                Placed(1, rectangle(0, 2, 40, 20), 720),
            ],
            [(1, (0, 2, 40, 20), False, False)],
        ),
        # Too small to be easy.
        ([Placed(4, rectangle(1, 1, 12, 9), 88)], [(4, (1, 1, 12, 9), True, False)]),
        # The order of drawing decides who hides whom.
        (
            [Placed(-1, rectangle(10, 0, 30, 20), 400), Placed(0, rectangle(0, 0, 20, 10), 200)],
            [(0, (0, 0, 20, 10), False, False)],
        ),
    ],
)
def test_annotate(
    placed: list[Placed], expected: list[tuple[int, tuple[int, ...], bool, bool]]
) -> None:
    boxes, labels, difficult, truncated = annotate(placed)
    assert boxes.shape == (len(expected), 4)
    assert boxes.dtype == np.float32
    assert labels.tolist() == [row[0] for row in expected]
    assert [tuple(box) for box in boxes.tolist()] == [row[1] for row in expected]
    assert difficult.tolist() == [row[2] for row in expected]
    assert truncated.tolist() == [row[3] for row in expected]


def test_render_square_turned_and_pasted_over_the_border() -> None:
    grey = np.full(3, 100.0)
    paint = painting.Paint(grey, grey, grey, grey, 0.0)
    square = np.array([[-1.0, -1.0], [1, -1], [1, 1], [-1, 1]])
    sprite = painting.render([painting.Part(square, grey)], paint, size=40, turn=math.pi / 4)
    # A square of side 40 on its corner: area 1600, diagonal 56.57.
    assert sprite.pixels[..., 3].sum() == pytest.approx(1600, rel=0.03)
    canvas = np.zeros((60, 80, 3), np.float32)
    covered = painting.paste(canvas, sprite, at=(0, 30))
    assert np.count_nonzero(covered) == pytest.approx(800, rel=0.05)
    assert not covered[:, 30:].any()
    assert np.all(canvas[covered] > 0)
    assert not painting.paste(canvas, sprite, at=(500, 500)).any()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("seed", range(5))
def test_shapes_fill_the_unit_square(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = getattr(sprites, name)(rng, painting.random_paint(rng))
    points = np.vstack([part.points for part in parts])
    assert 1.6 < np.ptp(points, axis=0).max() < 2.4
    assert np.abs(points).max() < 1.25


def test_scenes_are_reproducible_and_differ() -> None:
    first = [scene(0, i) for i in range(4)]
    again = [scene(0, i) for i in range(4)]
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    others = [*first, *(scene(1, i) for i in range(4))]
    assert len({hashlib.sha256(s.image.tobytes()).digest() for s in others}) == 8


def test_scenes_have_the_variety_they_promise() -> None:
    scenes = [scene(0, i) for i in range(200)]
    for s in scenes:
        assert s.image.shape == (*SIZE, 3)
        assert s.image.dtype == np.uint8
        assert len(s.boxes) == len(s.labels) == len(s.difficult) == len(s.truncated) <= 6
        assert np.all(s.boxes[:, :2] >= 0)
        assert np.all(s.boxes[:, :2] < s.boxes[:, 2:])
        assert np.all(s.boxes[:, 2:] <= [SIZE[1], SIZE[0]])
    labels = np.concatenate([s.labels for s in scenes])
    shares = np.bincount(labels, minlength=len(CLASSES)) / len(labels)
    assert shares.min() > 0.1
    assert 2 < len(labels) / len(scenes) < 4
    assert 0.01 < np.concatenate([s.difficult for s in scenes]).mean() < 0.15
    assert 0.05 < np.concatenate([s.truncated for s in scenes]).mean() < 0.4
    assert 1 <= sum(len(s.labels) == 0 for s in scenes) <= 12
    sides = np.concatenate([np.ptp(s.boxes.reshape(-1, 2, 2), axis=1).max(1) for s in scenes])
    assert np.quantile(sides, 0.05) < 60
    assert np.quantile(sides, 0.95) > 100


def test_colour_does_not_give_the_class_away() -> None:
    """The mean colour of the boxes tells the classes apart hardly better than chance (1 in 6)."""
    colours: list[np.ndarray] = []
    labels: list[int] = []
    for s in (scene(0, i) for i in range(250)):
        for (x1, y1, x2, y2), label in zip(s.boxes.astype(int).tolist(), s.labels, strict=True):
            colours.append(s.image[y1:y2, x1:x2].mean((0, 1)))
            labels.append(int(label))
    x, y = np.array(colours), np.array(labels)
    half = len(x) // 2
    means = np.stack([x[:half][y[:half] == c].mean(0) for c in range(len(CLASSES))])
    nearest = np.linalg.norm(x[half:, None] - means, axis=2).argmin(1)
    assert (nearest == y[half:]).mean() < 0.3


def test_write_a_devkit(tmp_path: Path) -> None:
    write_scenes(tmp_path, num_train=5, num_test=2, seed=3, size=(120, 160))
    devkit = tmp_path / "VOC2007"
    main = devkit / "ImageSets" / "Main"
    assert (main / "trainval.txt").read_text().split() == [f"{i:06d}" for i in range(1, 6)]
    assert (main / "test.txt").read_text().split() == ["000006", "000007"]
    for i in range(7):
        drawn = scene(3, i, (120, 160))
        tree = ET.parse(devkit / "Annotations" / f"{i + 1:06d}.xml").getroot()
        with Image.open(devkit / "JPEGImages" / str(tree.findtext("filename"))) as picture:
            assert picture.size == (160, 120)
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert np.abs(pixels - drawn.image).mean() < 8  # RGB in the right order, through JPEG
        assert tree.findtext("size/width") == "160"
        assert tree.findtext("size/height") == "120"
        objects = tree.findall("object")
        assert [o.findtext("name") for o in objects] == [CLASSES[c] for c in drawn.labels]
        assert [o.findtext("difficult") for o in objects] == [str(int(d)) for d in drawn.difficult]
        assert [o.findtext("truncated") for o in objects] == [str(int(t)) for t in drawn.truncated]
        corners = [[int(str(v.text)) for v in o.findall("bndbox/*")] for o in objects]
        # VOC counts pixels from 1 and includes the last: only the upper left corner moves.
        assert corners == np.add(drawn.boxes, [1, 1, 0, 0]).tolist()


def test_a_larger_set_begins_with_the_pictures_of_a_smaller(tmp_path: Path) -> None:
    write_scenes(tmp_path / "small", num_train=2, num_test=0, size=(64, 64))
    write_scenes(tmp_path / "large", num_train=3, num_test=1, size=(64, 64))
    small, large = digest(tmp_path / "small" / "VOC2007"), digest(tmp_path / "large" / "VOC2007")
    pictures = [name for name in small if "ImageSets" not in name]
    assert len(pictures) == 4
    assert all(small[name] == large[name] for name in pictures)


def test_an_empty_set(tmp_path: Path) -> None:
    write_scenes(tmp_path / "new" / "folder", num_train=0, num_test=0)
    listing = tmp_path / "new" / "folder" / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    assert listing.read_text() == ""


def test_writing_twice_does_nothing(tmp_path: Path) -> None:
    write_scenes(tmp_path, num_train=2, num_test=1, size=(64, 64))
    picture = tmp_path / "VOC2007" / "JPEGImages" / "000001.jpg"
    picture.write_bytes(b"mine now")
    write_scenes(tmp_path, num_train=2, num_test=1, size=(64, 64))
    assert picture.read_bytes() == b"mine now"


def test_an_interrupted_set_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "whole", num_train=3, num_test=1, size=(64, 64))
    calls = 0

    def interrupted(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return draw_scene(rng, size)

    with monkeypatch.context() as patch:
        patch.setattr("triscale.demo.scenes.draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "half", num_train=3, num_test=1, size=(64, 64))
    assert not (tmp_path / "half" / MARKER).exists()
    with pytest.raises(UserError, match='"seed": 9'):
        write_scenes(tmp_path / "half", num_train=3, num_test=1, seed=9, size=(64, 64))
    write_scenes(tmp_path / "half", num_train=3, num_test=1, size=(64, 64))
    assert digest(tmp_path / "half") == digest(tmp_path / "whole")


def test_a_folder_with_other_scenes_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path, num_train=1, num_test=0, size=(64, 64))
    before = digest(tmp_path)
    with pytest.raises(UserError, match=r'scenes\.json: expected .*"seed": 1.* found .*"seed": 0'):
        write_scenes(tmp_path, num_train=1, num_test=0, seed=1, size=(64, 64))
    assert digest(tmp_path) == before


@pytest.mark.parametrize("name", ["VOC2007/Annotations/000001.xml", "notes.txt"])
def test_a_folder_with_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"found '{name.split('/', maxsplit=1)[0]}'"):
        write_scenes(tmp_path, num_train=1, num_test=1, size=(64, 64))
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["precious"]


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="file: can't be written"):
        write_scenes(tmp_path / "file", num_train=1, num_test=1)


@pytest.mark.parametrize(
    ("num_train", "seed", "size"), [(-1, 0, SIZE), (1, -1, SIZE), (1, 0, (63, 320))]
)
def test_impossible_parameters(
    tmp_path: Path, num_train: int, seed: int, size: tuple[int, int]
) -> None:
    with pytest.raises(UserError, match="scenes: expected"):
        write_scenes(tmp_path, num_train=num_train, num_test=1, seed=seed, size=size)
