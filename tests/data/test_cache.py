"""The cache of opened sets: equal content, no stale or damaged entry used, processes apart."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triscale.data import build, cache, coco
from triscale.data import open as opening
from triscale.data.augment import AugmentConfig
from triscale.data.index import Index, PackedStrings, in_use, map_array
from triscale.data.loader import collate, read
from triscale.data.open import Data, open_dataset
from triscale.data.options import DataConfig
from triscale.errors import DataError, UserError
from triscale.types import Draw

SKIP = DataConfig(skip_bad=True)


def write_set(root: Path) -> Path:
    """A COCO root: pictures 1 to 3 hold 1, 0 and 2 objects and a broken one, 4 is missing."""
    for folder in ("annotations", "train", "val"):
        (root / folder).mkdir(parents=True)
    images = [
        {"id": i, "file_name": f"{i}.png", "width": 40, "height": 30, "coco_url": "x/extra/a.png"}
        for i in (3, 1, 2, 4)
    ]
    objects = [
        {"id": i, "image_id": image, "category_id": 5 + i % 2, "bbox": [i, 2, width, 9]}
        for i, (image, width) in enumerate([(3, 10), (1, 11), (3, 12), (1, 0)])
    ]
    categories = [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for i in (1, 2, 3):
            Image.new("L", (40, 30), i).save(root / split / f"{i}.png")
    return root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set that is cached although it is small, in a cache of its own."""
    monkeypatch.setenv("TRISCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "cached", partial(cache.cached, min_bytes=0))
    return write_set(tmp_path / "set")


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The annotation files that were read since the test began."""
    files: list[Path] = []

    def scan(path: Path, *arguments: Any, **settings: Any) -> build.Scan:
        files.append(path)
        return coco.scan_coco(path, *arguments, **settings)

    monkeypatch.setattr(opening, "scan_coco", scan)
    return files


def entries(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "cache" / "index").iterdir() if len(p.name) == 64)


def parts(index: Index | None) -> list[Any]:
    """All that an index holds, ready to be compared."""
    values = [getattr(index, field.name) for field in fields(Index)]
    lists = [list(v) if isinstance(v, PackedStrings) else v for v in values]
    return [(v.dtype, v.tolist()) if isinstance(v, np.ndarray) else v for v in lists]


def content(data: Data) -> list[Any]:
    """All that an opened set holds."""
    return [data.format, data.root, data.classes, data.skipped, parts(data.train), parts(data.val)]


def test_the_second_opening_maps_what_the_first_one_made(
    root: Path, tmp_path: Path, scans: list[Path]
) -> None:
    plain = content(open_dataset(root, replace(SKIP, index_cache=False)))
    assert not (tmp_path / "cache").exists()
    assert len(plain[3]) == 4
    del scans[:]
    for _ in range(3):
        data = open_dataset(root, SKIP)
        assert content(data) == plain
    assert len(scans) == 2
    (entry,) = entries(tmp_path)
    assert data.val is not None
    assert sum(in_use(path) for path in entry.glob("*.npy")) == 2 * 11
    assert not data.val.boxes.flags.writeable
    # The names and the content, as other programs see them.
    (file,) = entry.glob("1-boxes-*.npy")
    assert np.load(file).tolist() == data.val.boxes.tolist()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem.split("-")[2]
    del data
    assert not any(in_use(path) for path in entry.glob("*.npy"))


def test_a_set_is_not_kept_if_it_changes_while_it_is_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scan(path: Path, *arguments: Any, **settings: Any) -> build.Scan:
        found = coco.scan_coco(path, *arguments, **settings)
        path.write_text(path.read_text() + " ")
        return found

    monkeypatch.setattr(opening, "scan_coco", scan)
    assert open_dataset(root, SKIP).train is not None
    assert not entries(tmp_path)


def test_what_is_broken_is_not_cached(root: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match="4 broken labels"):
            open_dataset(root)
    assert not entries(tmp_path)


def test_small_sets_and_other_formats_are_not_cached(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "cached", cache.cached)
    open_dataset(root, SKIP)
    assert not (tmp_path / "cache").exists()


def touch(path: Path) -> None:
    """Another time of the last change, by a nanosecond, and the same content."""
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def rename_class(root: Path) -> None:
    path = root / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"cat"', '"car"'))


def new_folder(root: Path) -> None:
    shutil.copytree(root / "train", root / "train" / "extra")


@pytest.mark.parametrize(
    ("change", "settings", "again"),
    [
        (lambda root: None, {}, False),
        (lambda root: touch(root / "annotations" / "instances_val.json"), {}, False),
        (rename_class, {}, True),
        (lambda root: touch(root / "train" / "2.png"), {}, True),  # one without objects
        (lambda root: Image.new("L", (30, 40)).save(root / "val" / "1.png"), {}, True),
        (lambda root: (root / "val" / "3.png").unlink(), {}, True),
        (lambda root: Image.new("L", (40, 30)).save(root / "val" / "4.png"), {}, True),
        (new_folder, {}, True),  # where the URLs say that the pictures are
        (lambda root: None, {"skip_empty": False}, True),
        (lambda root: None, {"inclusive_boxes": True}, True),
        (lambda root: None, {"min_object_area": 95.0}, True),
        (lambda root: None, {"val": "train"}, True),
        (lambda root: None, {"classes": ("dog", "cat")}, True),
        (lambda root: None, {"num_samples": 1}, False),
    ],
)
def test_what_has_changed_is_read_again(
    root: Path,
    scans: list[Path],
    change: Callable[[Path], object],
    settings: dict[str, Any],
    again: bool,
) -> None:
    open_dataset(root, SKIP)
    config = replace(SKIP, **settings)
    change(root)
    del scans[:]
    found = content(open_dataset(root, config))
    assert len(scans) == 2 * again
    assert found == content(open_dataset(root, replace(config, index_cache=False)))
    del scans[:]
    assert content(open_dataset(root, config)) == found
    assert not scans


def test_relative_paths_roles_and_versions_have_entries_of_their_own(
    root: Path, tmp_path: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(root, SKIP)
    assert open_dataset(root, SKIP, splits=("val",)).train is None
    monkeypatch.chdir(tmp_path)
    data = open_dataset(Path("set"), SKIP)
    assert data.train is not None
    assert data.train.paths[0] == "set/train/1.png"
    monkeypatch.chdir(root)
    data = open_dataset(Path(), SKIP)
    assert data.train is not None
    assert data.train.paths[0] == "train/1.png"
    monkeypatch.setattr(cache, "__version__", "another")
    assert open_dataset(Path(), SKIP).skipped == data.skipped
    assert len(scans) == 2 + 1 + 2 + 2 + 2
    assert len(entries(tmp_path)) == 5


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forge(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"dog", b"dot"))


@pytest.mark.parametrize("name", ["meta.json", "0-boxes-*", "1-paths_ends-*", "1-states-*"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_text("{}"),
        lambda path: path.write_text("[" * 100_000),
        flip,
        forge,
    ],
)
def test_what_is_damaged_is_made_anew(
    root: Path, tmp_path: Path, scans: list[Path], name: str, damage: Callable[[Path], object]
) -> None:
    whole = content(open_dataset(root, SKIP))
    (entry,) = entries(tmp_path)
    (file,) = entry.glob(name)
    damage(file)
    for _ in range(2):
        assert content(open_dataset(root, SKIP)) == whole
    assert len(scans) == (2 if damage is forge and name != "meta.json" else 4)
    assert {path.name[-5:] for path in entry.parent.iterdir()} == {entry.name[-5:], ".lock"}


@pytest.mark.parametrize("kind", ["empty folder", "file", "link to nowhere"])
def test_something_else_in_the_place_of_an_entry(
    root: Path, tmp_path: Path, scans: list[Path], kind: str
) -> None:
    whole = content(open_dataset(root, SKIP))
    (entry,) = entries(tmp_path)
    shutil.rmtree(entry)
    if kind == "empty folder":
        entry.mkdir()
    elif kind == "file":
        entry.touch()
    else:
        entry.symlink_to("nowhere")
    for _ in range(2):
        assert content(open_dataset(root, SKIP)) == whole
    assert len(scans) == 4 + 2 * (kind == "link to nowhere")  # that one just isn't replaced


@pytest.mark.parametrize("place", ["file", "full", "no locks", "no home"])
def test_one_goes_on_without_a_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "cache"
    if place == "file":
        folder.touch()
    elif place == "full":
        monkeypatch.setattr(np, "save", fail)
    elif place == "no locks":
        monkeypatch.setattr(cache.fcntl, "flock", fail)
    else:
        monkeypatch.setattr(cache, "cache_folder", fail)
    plain = content(open_dataset(root, replace(SKIP, index_cache=False)))
    assert content(open_dataset(root, SKIP)) == plain
    if place == "full":
        assert [path.suffix for path in (folder / "index").iterdir()] == [".lock"]


PROGRAM = """
import sys
import time
from functools import partial
from pathlib import Path
from triscale.data import cache, coco, open as opening
from triscale.data.options import DataConfig

def scan(*arguments, **settings):
    print("scan", flush=True)
    return coco.scan_coco(*arguments, **settings)

def load(entry, load=cache._load):
    found = load(entry)
    time.sleep(0.5)  # so that all of them find nothing
    return found

opening.scan_coco = scan
cache._load = load
opening.cached = partial(cache.cached, min_bytes=0)
print("ready", flush=True)
sys.stdin.readline()
data = opening.open_dataset(Path(sys.argv[1]), DataConfig(skip_bad=True))
print(data.train.boxes.tolist(), list(data.val.paths))
"""


def test_one_process_makes_the_entry_and_the_others_wait(root: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, str(root)]
    pipe = subprocess.PIPE
    crew = [subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for process in crew:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in crew:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in crew]
    assert sorted(len(lines) for lines in outputs) == [1, 1, 1, 3]
    assert len({lines[-1] for lines in outputs}) == 1
    assert len(entries(tmp_path)) == 1


def test_the_oldest_entries_go_unless_they_are_in_use(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "KEEP", 2)

    def opened(area: float) -> tuple[Data, Path]:
        before = set(entries(tmp_path)) if (tmp_path / "cache").exists() else set()
        data = open_dataset(root, replace(SKIP, min_object_area=area))
        return data, next(iter(set(entries(tmp_path)) - before), Path())

    held, first = opened(1)
    second = opened(2)[1]
    index = first.parent
    (index / f".{'0' * 64}.tmp").mkdir()  # of a process that was killed
    (index / f".{'0' * 64}.old").mkdir()
    (index / "notes").touch()  # not ours
    third = opened(3)[1]
    assert entries(tmp_path) == sorted([first, second, third])  # the oldest one is mapped
    opened(2)
    del held
    fourth = opened(4)[1]
    assert entries(tmp_path) == sorted([second, fourth])
    names = {path.name for path in index.iterdir()}
    kept = {path.name for path in (second, fourth)}
    assert names == {"notes", *kept, *(f".{name}.lock" for name in kept)}


def test_a_cached_index_travels_as_the_names_of_its_files(root: Path, tmp_path: Path) -> None:
    index = open_dataset(root, SKIP, splits=("val",)).val
    assert index is not None
    sent = bytes(ForkingPickler.dumps(index))
    received = pickle.loads(sent)
    assert parts(received) == parts(index)
    assert sent.count(b".npy") == 11
    assert index.boxes.tobytes() not in sent
    (entry,) = entries(tmp_path)
    del index
    assert in_use(next(entry.glob("*-boxes-*.npy")))  # by the one that was received

    moved = replace(received, boxes=received.boxes + 1)  # no longer what is in the file
    assert parts(pickle.loads(pickle.dumps(moved))) == parts(moved)
    half = received.select(np.array([2, 0]))
    assert parts(pickle.loads(pickle.dumps(half))) == parts(half)
    assert list(half.ids) == ["3", "1"]
    assert half.boxes.tolist() == received.boxes[[1, 2, 0]].tolist()
    view = replace(received, sizes=received.sizes[:1])
    assert parts(pickle.loads(pickle.dumps(view))) == parts(view)
    shutil.rmtree(entry)
    with pytest.raises(UserError, match=r"gone or was replaced .* start the program again"):
        pickle.loads(sent)


def test_samples_of_a_cached_index(root: Path) -> None:
    for _ in range(2):
        index = open_dataset(root, SKIP, splits=("val",)).val
        assert index is not None
        draws = [Draw(2, (32, 32), 7), Draw(0, (32, 32), 0, augment=False)]
        batch = collate([read(index, draw, AugmentConfig()) for draw in draws])
        assert batch.labels[1].tolist()[0] == 1
        assert batch.boxes[1, 0].tolist() == pytest.approx([0.8, 2.1333, 9.6, 11.7333], abs=1e-3)


def test_map_array_takes_plain_arrays_only(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for shape in [(0,), (0, 4), (3, 4)]:
        np.save(path, np.ones(shape, np.float32))
        assert map_array(path).shape == shape
    np.save(path, np.array([[1, 2], [3, 4]], order="F"))
    with pytest.raises(ValueError, match="expected a plain array"):
        map_array(path)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="expected a plain array"):
        map_array(path)


def test_look(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert build.look([]).shape == (0, 2)
    states = build.look([str(tmp_path / "no"), str(path), "a\0b"] * 1000)
    expected = [[-1, -1], [3, path.stat().st_mtime_ns], [-1, -1]]
    assert states.tolist() == expected * 1000
