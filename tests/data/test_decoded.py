"""Kept pictures: the right pixels or none, whatever happens to the file, the disk, the process."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.data.tiny import noise, write_index
from triscale.data import decoded as module
from triscale.data import loader
from triscale.data.augment import AugmentConfig
from triscale.data.decoded import GIB, DecodedPictures, free_memory, open_decoded, places, seal_of
from triscale.data.index import Index
from triscale.data.loader import read
from triscale.data.options import DataConfig
from triscale.data.pictures import read_picture
from triscale.errors import UserError
from triscale.types import Draw

Kind = Literal["ram", "disk"]
KINDS = ("ram", "disk")
# (height, width): 1, 1, 2 and 4 pages of 4096 bytes
SIZES = ((1, 1), (32, 42), (30, 50), (64, 64))


def pictures(shift: int = 0) -> list[NDArray[np.uint8]]:
    """What is in the set: the expected values, known without any decoder."""
    return [noise(*size, seed=i + shift) for i, size in enumerate(SIZES)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files will lie."""
    monkeypatch.setenv("TRISCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def index(tmp_path: Path, folder: Path) -> Index:
    (tmp_path / "set").mkdir()
    return write_index(tmp_path / "set", pictures(), [[]] * len(SIZES))


def opened(index: Index, kind: Kind, *, pages: float = 1000, said: list[str] | None = None) -> Any:
    """A cache with room for so many pages."""
    config = DataConfig(cache=kind, cache_gib=pages * 4096 / GIB)
    (decoded,) = open_decoded([index], config, say=[].append if said is None else said.append)
    return decoded


def load(index: Index, image: int, decoded: DecodedPictures) -> tuple[NDArray[np.uint8], bool]:
    """The pixels as a loader gets them, and whether they were kept."""
    kept = decoded.get(image)
    if kept is not None:
        return kept, True
    pixels = read_picture(Path(index.paths[image]))
    decoded.put(image, pixels)
    return pixels, False


def epoch(
    index: Index, decoded: DecodedPictures, expected: Sequence[NDArray[np.uint8]] | None = None
) -> list[bool]:
    """All pictures once, which must be as expected; which of them were kept."""
    kept: list[bool] = []
    for image, picture in enumerate(pictures() if expected is None else expected):
        pixels, was_kept = load(index, image, decoded)
        np.testing.assert_array_equal(pixels, picture)
        kept.append(was_kept)
    return kept


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.rgb"))


# --- what it is for ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", *KINDS])
def test_nothing_to_keep(index: Index, kind: Literal["", "ram", "disk"], folder: Path) -> None:
    said: list[str] = []
    for splits in ([], [None], [None, None]):
        config = DataConfig(cache=kind)
        assert open_decoded(splits, config, say=said.append) == [None] * len(splits)
    assert open_decoded([index], DataConfig(), say=said.append) == [None]
    assert not said
    assert not folder.exists()
    if kind:
        empty = index.select(np.zeros(0, np.int64))
        assert epoch(empty, opened(empty, kind, said=said), []) == []
        assert "room for 0 of 0 pictures" in said[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_epoch_is_kept_and_equal(index: Index, kind: Kind) -> None:
    said: list[str] = []
    decoded = opened(index, kind, said=said)
    assert said[0].startswith(f"data.cache={kind}: room for 4 of 4 pictures of tiny (0.00 of ")
    assert epoch(index, decoded) == [False] * 4
    for _ in range(2):
        assert epoch(index, decoded) == [True] * 4
    assert not load(index, 2, decoded)[0].flags.writeable


def test_the_next_run_finds_the_file_and_no_memory(index: Index, folder: Path) -> None:
    for kind in KINDS:
        epoch(index, opened(index, kind))
    assert epoch(index, opened(index, "ram")) == [False] * 4
    assert epoch(index, opened(index, "disk")) == [True] * 4
    (path,) = files(folder)
    # 4 seals on the second page; the last picture's 3 pages behind those of the others
    assert path.stat().st_size == places(index)[-1] == 4096 * (2 + 1 + 1 + 2 + 3)
    assert path.read_bytes()[-3 * 4096 :] == pictures()[3].tobytes()


@pytest.mark.parametrize("automatic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pages", "fitting"), [(0.5, 0), (1, 1), (3, 2), (4, 3), (6, 3), (7, 4)])
def test_what_fits_is_kept(
    index: Index,
    kind: Kind,
    pages: float,
    fitting: int,
    automatic: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = int(2 * pages * 4096)  # half of it may be used
    usage = shutil.disk_usage(folder.parents[1])._replace(free=free)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(module, "free_memory", lambda: free)
    said: list[str] = []
    decoded = opened(index, kind, pages=0 if automatic else pages, said=said)
    assert f"room for {fitting} of 4 pictures" in said[0]
    for _ in range(2):
        kept = epoch(index, decoded)
    assert kept == [True] * fitting + [False] * (4 - fitting)


def test_splits_and_processes_share_the_room(index: Index) -> None:
    config = DataConfig(cache="ram", cache_gib=10 * 4096 / GIB)
    said: list[str] = []
    train, nothing, val = open_decoded([index, None, index], config, say=said.append)
    assert nothing is None
    assert train is not None
    assert val is not None
    assert [line.split(" pictures")[0][-6:] for line in said] == ["4 of 4", "2 of 4"]
    open_decoded([index], config, say=said.append, processes=2)
    assert "room for 3 of 4" in said[-1]


def test_the_bound_may_become_smaller(index: Index, folder: Path) -> None:
    epoch(index, opened(index, "disk"))
    held = opened(index, "disk")
    assert epoch(index, opened(index, "disk", pages=2)) == [True] * 4  # it's in use
    del held
    decoded = opened(index, "disk", pages=2)
    assert files(folder)[0].stat().st_blocks * 512 <= (2 + 2) * 4096
    for _ in range(2):
        assert epoch(index, decoded) == [True, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_same_and_their_own(
    index: Index, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transforms take pictures that are read only, and give arrays that aren't."""
    decoded = opened(index, kind)
    epoch(index, decoded)
    config = AugmentConfig(mixup=True)
    draws = [Draw(i % 3 + 1, (64, 64), i) for i in range(60)]
    draws += [Draw(i % 3 + 1, (64, 64), i, partner=i % 2 + 1, ratio=0.3) for i in range(60)]
    draws += [Draw(i, (side, side), 0, augment=False) for i in (2, 3) for side in (32, 64, 96)]
    expected = [read(index, draw, config) for draw in draws]

    def kept(path: Path, *, reduction: int = 1) -> NDArray[np.uint8]:
        assert reduction == 1
        pixels = decoded.get(list(index.paths).index(str(path)))
        assert pixels is not None
        return pixels

    monkeypatch.setattr(loader, "read_picture", kept)
    for draw, theirs in zip(draws, expected, strict=True):
        ours = read(index, draw, config)
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(x, y)
        assert ours.image.flags.writeable
        assert not np.shares_memory(ours.image, decoded.get(draw.index))


# --- what must not happen ------------------------------------------------------------------------


def touch(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def repaint(path: Path) -> None:
    """Another picture in a file of the same length, later."""
    before = path.stat()
    cv2.imwrite(str(path), pictures(9)[2][..., ::-1])
    path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("change", "shift"), [(touch, 0), (repaint, 9)])
def test_a_picture_that_changes_is_never_stale(
    index: Index, folder: Path, kind: Kind, change: Callable[[Path], None], shift: int
) -> None:
    decoded = opened(index, kind)
    epoch(index, decoded)
    change(Path(index.paths[2]))
    expected = [*pictures()[:2], pictures(shift)[2], pictures()[3]]
    for _ in range(2):  # it isn't put in place of the other: somebody may just be reading that
        assert epoch(index, decoded, expected) == [True, True, False, True]
    decoded = opened(index, kind)
    assert epoch(index, decoded, expected) == [False] * 4
    assert epoch(index, decoded, expected) == [True] * 4
    assert len(files(folder)) == (kind == "disk") * 2  # the old one was in use
    del decoded
    opened(index, kind)
    assert len(files(folder)) == (kind == "disk")


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_changes_while_it_is_decoded_is_not_kept(index: Index, kind: Kind) -> None:
    decoded, path = opened(index, kind), Path(index.paths[2])
    before, content = path.stat(), path.read_bytes()
    repaint(path)
    load(index, 2, decoded)
    path.write_bytes(content)  # as from a backup, with its time
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert epoch(index, decoded) == [False] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_gone_is_an_error_as_ever(index: Index, kind: Kind) -> None:
    decoded = opened(index, kind)
    epoch(index, decoded)
    Path(index.paths[1]).unlink()
    with pytest.raises(UserError, match="can't be read"):
        load(index, 1, decoded)


def damage(data: bytearray, rng: np.random.Generator) -> bytes:
    """Some bytes changed, a page lost, pages swapped, the end cut off, or other bytes appended."""
    page = 4096 * rng.integers(0, len(data) // 4096, 2)
    match rng.integers(5):
        case 0:
            for position in rng.integers(0, len(data), rng.integers(1, 9)):
                data[position] ^= 1 << int(rng.integers(8))
        case 1:
            data[page[0] : page[0] + 4096] = bytes(4096)
        case 2:
            first, second = (data[p : p + 4096] for p in page)
            data[page[1] : page[1] + 4096], data[page[0] : page[0] + 4096] = first, second
        case 3:
            del data[rng.integers(len(data)) :]
        case _:
            data += rng.bytes(5000)
    return bytes(data)


@pytest.mark.parametrize("in_a_run", [False, True])
def test_damage_costs_time_only(index: Index, folder: Path, in_a_run: bool) -> None:
    epoch(index, opened(index, "disk"))
    (path,) = files(folder)
    whole, rng, lost = path.read_bytes(), np.random.default_rng(7), 0
    for _ in range(150):
        path.write_bytes(whole)
        decoded = opened(index, "disk") if in_a_run else None
        path.write_bytes(damage(bytearray(whole), rng))
        decoded = decoded or opened(index, "disk")
        lost += epoch(index, decoded).count(False)
        kept = epoch(index, decoded)
        assert kept == [True] * 4
    assert lost > 100


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"decoded", b"encoded", 1)),
        lambda path: path.with_name(f".{path.name}.123.tmp").write_bytes(b"half"),
    ],
)
def test_a_file_that_is_not_ours_is_made_anew(
    index: Index, folder: Path, spoil: Callable[[Path], object]
) -> None:
    epoch(index, opened(index, "disk"))
    (path,) = files(folder)
    spoil(path)
    decoded = opened(index, "disk")
    epoch(index, decoded)
    assert epoch(index, decoded) == [True] * 4
    assert sorted(p.name for p in folder.iterdir()) == [".lock", path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_one_warning(
    index: Index, kind: Kind, capfd: pytest.CaptureFixture[str]
) -> None:
    decoded, other = opened(index, kind), opened(index, "disk")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The pixels of the third picture are written in part, as on a disk with one page left.
    resource.setrlimit(resource.RLIMIT_FSIZE, ((2 + 1 + 1 + 1) * 4096, limits[1]))
    try:
        first = epoch(index, decoded), epoch(index, decoded)
        if kind == "disk":
            assert epoch(index, other) == [True] * 2 + [False] * 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert first == ([False] * 4, [True] * 2 + [False] * 2)
    assert epoch(index, decoded) == first[1]  # also when there is room again
    warnings = capfd.readouterr().err.splitlines()
    assert [line.split(" can't take")[0] for line in warnings] == [
        f"warning: {decoded._path or 'memory'}"
    ]
    assert warnings[0].endswith(
        "more decoded pictures (No space left on device); the others are decoded each time"
    )
    assert epoch(index, opened(index, "disk"))[3] is False
    assert epoch(index, opened(index, "disk"))[3] is True  # the next run begins anew


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(12, "No memory")])
def test_a_disk_that_fails_is_no_disk(
    index: Index,
    error: OSError,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    decoded = opened(index, "disk")
    epoch(index, decoded)
    monkeypatch.setattr(module.os, "pread", fail)
    monkeypatch.setattr(module.os, "pwrite", fail)
    assert epoch(index, decoded) == [False] * 4
    assert capfd.readouterr().err.count("\n") == 1


def test_an_older_system_cannot_fetch(index: Index, folder: Path) -> None:
    decoded = opened(index, "disk")
    epoch(index, decoded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_POPULATE_READ", 99)  # no such advice: EINVAL
        assert epoch(index, decoded) == [True] * 4
        os.truncate(files(folder)[0], 7 * 4096)
        assert epoch(index, decoded) == [True] * 3 + [False]


@pytest.mark.parametrize("place", ["file", "no locks", "no memory"])
def test_one_goes_on_without(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    said: list[str] = []
    if place == "file":
        folder.parent.touch()
    elif place == "no locks":
        monkeypatch.setattr(module.fcntl, "flock", fail)
    else:
        monkeypatch.setattr(module.mmap, "mmap", fail)
    for kind in KINDS if place == "no memory" else ("disk",):
        assert opened(index, kind, said=said) is None
        assert said[-1].startswith(f"warning: data.cache={kind}: ")
        assert said[-1].endswith("; pictures are decoded each time")


@pytest.mark.parametrize(
    ("kind", "place", "call"),
    [
        ("ram", "os", "ftruncate"),
        ("ram", "module", "look"),
        ("ram", "mmap", "mmap"),
        ("disk", "os", "pwrite"),
        ("disk", "fcntl", "flock"),
        ("disk", "mmap", "mmap"),
    ],
)
def test_nothing_stays_open_where_opening_fails(
    index: Index, monkeypatch: pytest.MonkeyPatch, kind: Kind, place: str, call: str
) -> None:
    owner: Any = module if place == "module" else getattr(module, place)
    original = getattr(owner, call)

    def fail(*words: Any, **named: Any) -> Any:
        if call == "flock" and words[1] != module.fcntl.LOCK_SH:  # the folder's own lock
            return original(*words)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(owner, call, fail)
    before = os.listdir("/proc/self/fd")
    assert opened(index, kind) is None
    assert os.listdir("/proc/self/fd") == before


def test_memory_needs_linux(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"use data\.cache=disk$"):
        opened(index, "ram")


def test_old_files_make_room(index: Index, folder: Path) -> None:
    """7 pages of pixels and 2 others in each file; splits of other names are other data."""
    one, two, three = (replace(index, name=name) for name in ("one", "two", "three"))
    names: list[str] = []
    for split in (one, two):
        epoch(split, opened(split, "disk", pages=40))
        (new,) = {path.name for path in files(folder)} - set(names)
        names.append(new)
    for path in files(folder):
        os.utime(path, (1, 1))
    opened(one, "disk", pages=40)  # used last
    opened(three, "disk", pages=20)
    left = {path.name for path in files(folder)}
    assert names[0] in left
    assert names[1] not in left
    held = opened(one, "disk", pages=20)
    said: list[str] = []
    opened(two, "disk", pages=9, said=said)
    assert names[0] in {path.name for path in files(folder)}
    assert "room for 0 of 4" in said[0]  # as long as the other one is in use
    del held
    opened(two, "disk", pages=9, said=said)
    assert names[0] not in {path.name for path in files(folder)}
    assert "room for 4 of 4" in said[1]
    (old,) = files(folder)
    opened(one, "disk", pages=40)
    os.utime(old, (2**31 - 1, 2**31 - 1))
    touch(Path(index.paths[0]))
    opened(two, "disk", pages=8)  # what it replaces goes first, though used later
    assert [path.name for path in files(folder) if path.name in (*names, old.name)] == names[:1]


def test_samples_keep_their_files(index: Index, folder: Path) -> None:
    """Runs with other samples, or none, don't take each other's pictures away."""
    config = DataConfig(cache="disk", cache_gib=1)
    for _ in range(2):
        kept: list[bool] = []
        for count, split in ((2, (3, 1)), (2, (0, 2)), (3, (1, 0, 2)), (0, (0, 1, 2, 3))):
            sample = index.select(np.array(split))
            (decoded,) = open_decoded([sample], replace(config, num_samples=count), say=[].append)
            assert decoded is not None
            kept += epoch(sample, decoded, [pictures()[i] for i in split])
            del decoded
    assert kept == [True] * 11
    assert len(files(folder)) == 4
    touch(Path(index.paths[1]))
    opened(index, "disk")
    assert len(files(folder)) == 4, "the whole split's file is replaced, samples stay"


# --- other processes -----------------------------------------------------------------------------


def fill(index: Index, decoded: DecodedPictures, seconds: float) -> None:
    """Put all pictures, in an order of one's own, again and again."""
    end, rng = time.monotonic() + seconds, np.random.default_rng(os.getpid())
    while True:
        for image in rng.permutation(len(index)).tolist():
            decoded.put(image, read_picture(Path(index.paths[image])))
            pixels = decoded.get(image)
            assert pixels is not None
            np.testing.assert_array_equal(pixels, pictures()[image])
        if time.monotonic() >= end:
            return


@pytest.mark.parametrize(
    ("method", "kind", "workers"),
    [("fork", "ram", 2), ("fork", "disk", 2), ("spawn", "ram", 1), ("forkserver", "disk", 1)],
)
def test_processes_share_it(index: Index, method: str, kind: Kind, workers: int) -> None:
    context: Any = multiprocessing.get_context(method)
    decoded = opened(index, kind)
    crew = [context.Process(target=fill, args=(index, decoded, 0.2)) for _ in range(workers)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(60)
    assert [process.exitcode for process in crew] == [0] * workers
    assert epoch(index, decoded) == [True] * 4


def test_two_runs_fill_one_file(index: Index) -> None:
    """Each with a descriptor and a mapping of its own."""
    context: Any = multiprocessing.get_context("fork")
    opening = [opened(index, "disk") for _ in range(3)]
    crew = [context.Process(target=fill, args=(index, decoded, 0.3)) for decoded in opening[:2]]
    for process in crew:
        process.start()
    for process in crew:
        process.join(60)
    assert [process.exitcode for process in crew] == [0, 0]
    assert epoch(index, opening[2]) == [True] * 4


@pytest.fixture
def shared_memory() -> Iterator[None]:
    """Nothing is left in /dev/shm."""
    before = set(os.listdir("/dev/shm"))
    yield
    assert not {name for name in os.listdir("/dev/shm") if "decoded" in name} - before


@pytest.mark.usefixtures("shared_memory")
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment(index: Index, kind: Kind) -> None:
    context: Any = multiprocessing.get_context("fork")
    for round_ in range(12):
        decoded = opened(index, kind)
        process = context.Process(target=fill, args=(index, decoded, 60))
        process.start()
        time.sleep(0.002 * round_)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        epoch(index, decoded)
        assert epoch(index, decoded) == [True] * 4


# --- arithmetic ----------------------------------------------------------------------------------


def plain_seal(data: bytes) -> bytes:
    """The same in whole numbers: every eighth byte begins a word, 512 words are a page."""
    words = [int.from_bytes(data[i : i + 8], sys.byteorder) for i in range(0, len(data), 8)]
    columns = [sum(words[k::512]) for k in range(512)]
    rows = [sum(words[k : k + 512]) for k in range(0, len(words), 512)]
    sums = b"".join((s % 2**64).to_bytes(8, sys.byteorder) for s in columns + rows)
    return hashlib.blake2b(sums, digest_size=8).digest()


def test_seals() -> None:
    rng = np.random.default_rng(0)
    for pages in (1, 2, 5):
        words = rng.integers(0, 2**64, 512 * pages, np.uint64)
        assert seal_of(words) == plain_seal(words.tobytes())
        seen = {seal_of(words)}
        for position in rng.integers(0, len(words), 50).tolist():
            changed = words.copy()
            changed[position] ^= np.uint64(1 << int(rng.integers(64)))
            seen.add(seal_of(changed))
        seen |= {seal_of(np.roll(words, shift)) for shift in (1, 2, 3)}
        moved = {seal_of(np.roll(words, 512 * k)) for k in range(1, pages)}
        assert len(seen | moved) == 1 + len({*seen}) - 1 + pages - 1
        assert len(seen) > 50


@pytest.mark.parametrize(
    ("group", "limits", "expected"),
    [
        (None, {}, 8000 * 1024),
        ("0::/", {"": ("max", 5, 0)}, 8000 * 1024),
        ("0::/a/b", {"a/b": ("max", 5, 0), "a": ("4000000", 1000000, 500000)}, 3500000),
        ("0::/gone/from/here", {"": ("100", 300, 0)}, 0),
        ("0::/", {"": ("99999999999", 0, 0)}, 8000 * 1024),
        ("4:memory:/job", {"memory/job": ("4000000", 1000000, 7)}, 3000007),
        ("3:cpuset:/job\n4:memory:/\n0::/", {"memory": ("5000000", 1000000, 0)}, 4000000),
    ],
)
def test_memory_that_is_free(
    tmp_path: Path, group: str | None, limits: dict[str, tuple[str, int, int]], expected: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000 kB\n")
    if group:
        (tmp_path / "proc/self/cgroup").write_text(group + "\n")
    for name, (most, now, inactive) in limits.items():
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        first = name.startswith("memory")  # version 1 of the groups
        (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(f"{most}\n")
        (folder / ("memory.usage_in_bytes" if first else "memory.current")).write_text(f"{now}\n")
        (folder / "memory.stat").write_text(f"anon 3\n{'total_' * first}inactive_file {inactive}\n")
    assert free_memory(tmp_path) == expected


def test_memory_of_this_machine() -> None:
    assert 0 < free_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("bound", [-1, -math.inf, math.nan])
def test_bounds_that_are_none(bound: float) -> None:
    with pytest.raises(UserError, match=rf"^data\.cache_gib: expected at least 0, got {bound}$"):
        DataConfig(cache_gib=bound)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bound", "kept"), [(5e-324, False), (1e300, True), (1.7e308, True)])
def test_bounds_without_measure(index: Index, kind: Kind, bound: float, kept: bool) -> None:
    (decoded,) = open_decoded([index], DataConfig(cache=kind, cache_gib=bound), say=[].append)
    assert decoded is not None
    epoch(index, decoded)
    assert epoch(index, decoded) == [kept] * 4


def test_where_one_stands_names_nothing(
    index: Index, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets with splits of one name live side by side, however they are spelled."""
    (tmp_path / "other").mkdir()
    write_index(tmp_path / "other", pictures(1), [[]] * len(SIZES))
    monkeypatch.chdir(tmp_path)
    nearby = [Path(name) for name in ("set", "other")]
    for place in nearby:
        opened(write_index(place, pictures(nearby.index(place)), [[]] * len(SIZES)), "disk")
    names = files(folder)
    assert len(names) == 2
    monkeypatch.chdir(tmp_path / "set")
    opened(write_index(Path("../other"), pictures(1), [[]] * len(SIZES)), "disk")
    assert files(folder)[0].name.split("-")[0] in {path.name.split("-")[0] for path in names}
    assert len(files(folder)) == 2
