"""Decoded pictures that are kept: for the next epoch in memory, for the next run in a file.

Decoding a picture costs many times what reading its pixels does. The places of all pixels follow
from the sizes in the index, so nothing is ever moved or looked for. Memory and file have the same
layout: a page with the key of the data, a seal (8 bytes) for each picture, and the pixels of each
on pages of its own; what was not kept is a hole.

Nothing that is found is believed. Each time a picture is wanted its own file must be as it was when
the cache was opened, and the pixels must fit their seal, a checksum. So a process that is killed, a
full disk, a power cut, another program in the same file, a flipped bit cost a decoding, and never
give a wrong picture. Pixels are written, not stored through the mapping: on a full disk that is an
error, not a signal.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import mmap
import os
import re
import shutil
import sys
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from triscale import __version__
from triscale.data.build import look
from triscale.data.index import Index, in_use
from triscale.data.options import DataConfig
from triscale.errors import UserError
from triscale.files import cache_folder, naming, remove_leftovers, replace_atomically

FORMAT = 1  # of the layout, and of what decoding gives
GIB = 2**30
_PAGE = 4096  # bytes; of the layout, whatever the machine's own are
_MOST = 1 << 62  # bytes; files can't be longer
_FULL = 512  # position of the byte that tells all processes that there is no more room
_POPULATE_READ = 22  # madvise(2), since Linux 5.14


class DecodedPictures:
    """The decoded pictures of an index; processes share it, forked or not."""

    def __init__(
        self,
        index: Index,
        states: NDArray[np.int64],
        descriptor: int,
        *,
        limit: int,
        path: Path | None = None,
    ) -> None:
        """`descriptor` becomes this object's: of the file at `path`, or None, of memory. No picture
        is put behind `limit` bytes of pixels."""
        self._index, self._states, self._descriptor = index, states, descriptor
        weakref.finalize(self, os.close, descriptor)
        self._starts = places(index)
        self._limit, self._path = limit, path
        self._map = mmap.mmap(descriptor, int(self._starts[-1]), prot=mmap.PROT_READ)

    def __reduce__(self) -> tuple[Any, ...]:
        sent = reduction.DupFd(self._descriptor)
        return _received, (self._index, self._states, sent, self._limit, self._path)

    def __str__(self) -> str:
        bytes_wanted = int(np.ptp(self._starts))
        fitting = np.searchsorted(self._starts[1:] - self._starts[0], self._limit, side="right")
        return (
            f"room for {int(fitting):,} of {len(self._index):,} pictures of {self._index.name} "
            f"({self._limit / GIB:.2f} of {bytes_wanted / GIB:.2f} GiB) in {self._path or 'memory'}"
        )

    def get(self, image: int) -> NDArray[np.uint8] | None:
        """The picture (H, W, 3) RGB, to be read only, or None if it isn't there or has changed."""
        start, end = self._place(image)
        try:
            seal = os.pread(self._descriptor, 8, _PAGE + 8 * image)
            if not any(seal) or self._has_changed(image):
                return None
            if self._path:
                self._fetch(start, end)
        except OSError:
            return None
        words = np.ndarray((end - start) // 8, np.uint64, self._map, start)
        if seal_of(words) != seal:
            return None
        height, width = self._index.sizes[image].tolist()
        return words.view(np.uint8)[: height * width * 3].reshape(height, width, 3)

    def put(self, image: int, pixels: NDArray[np.uint8]) -> None:
        """Keep a picture that `get` didn't have, if there is room."""
        assert pixels.shape == (*self._index.sizes[image].tolist(), 3)
        start, end = self._place(image)
        if end - self._starts[0] > self._limit:
            return
        words = np.zeros((end - start) // 8, np.uint64)
        words.view(np.uint8)[: pixels.size] = pixels.reshape(-1)
        try:
            # It may have changed since the opening, even while it was decoded.
            if os.pread(self._descriptor, 1, _FULL) == b"\1" or self._has_changed(image):
                return
            self._write(words, start)
            self._write(np.frombuffer(seal_of(words), np.uint8), _PAGE + 8 * image)
        except OSError as error:
            with suppress(OSError):
                os.pwrite(self._descriptor, b"\1", _FULL)
            self._limit = 0
            reason = f"{self._path or 'memory'} can't take more decoded pictures ({error.strerror})"
            print(f"warning: {reason}; the others are decoded each time", file=sys.stderr)

    def _write(self, data: NDArray[Any], position: int) -> None:
        if os.pwrite(self._descriptor, data.data, position) < data.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _place(self, image: int) -> tuple[int, int]:
        start, end = self._starts[image : image + 2].tolist()
        return start, end

    def _has_changed(self, image: int) -> bool:
        try:
            found = os.stat(self._index.paths[image])
        except (OSError, ValueError):
            return True
        return self._states[image].tolist() != [found.st_size, found.st_mtime_ns]

    def _fetch(self, start: int, end: int) -> None:
        """Have these bytes in memory, or an OSError: where the file was cut or the disk fails,
        merely touching them is a deadly signal."""
        start -= start % mmap.PAGESIZE
        try:
            self._map.madvise(_POPULATE_READ, start, end - start)
        except OSError as error:  # EINVAL: an older system
            if error.errno != errno.EINVAL or os.fstat(self._descriptor).st_size < end:
                raise


def _received(
    index: Index, states: NDArray[np.int64], sent: Any, limit: int, path: Path | None
) -> DecodedPictures:
    return DecodedPictures(index, states, sent.detach(), limit=limit, path=path)


def places(index: Index) -> NDArray[np.int64]:
    """(n + 1,) where the pages of each picture's pixels start, and where the last ones end."""
    heights, widths = index.sizes.astype(np.int64).T
    counts = [np.array([1 + -(-8 * len(index) // _PAGE)]), -(-heights * widths * 3 // _PAGE)]
    return np.cumsum(np.concatenate(counts)) * _PAGE


def seal_of(words: NDArray[np.uint64]) -> bytes:
    """8 bytes that depend on all pixels, given as whole pages of 64-bit words; never 8 zeros.

    The sums along and across the pages, hashed. A change in one word, and a page that is lost,
    old or in another's place change them. It takes 0.07 ms where CRC-32 takes 0.23 (640x480).
    """
    pages = words.reshape(-1, _PAGE // 8)
    sums = np.concatenate([pages.sum(0), pages.sum(1)])
    seal = hashlib.blake2b(sums.tobytes(), digest_size=8).digest()
    return seal if any(seal) else b"\1" * 8


# --- opening -------------------------------------------------------------------------------------


def open_decoded(
    indices: Sequence[Index | None],
    config: DataConfig,
    *,
    say: Callable[[str], None],
    processes: int = 1,
) -> list[DecodedPictures | None]:
    """The caches of some splits, the first of which may fill all of the room, or None for each.

    Together they take `data.cache_gib`, or half of what is free now. So many `processes` of a run
    share this machine: its memory is divided between them, a file is one for all. `say` is told
    what there is.
    """
    asked = [index for index in indices if index is not None]
    if not config.cache or not asked:
        return [None] * len(indices)
    if config.cache == "ram" and sys.platform != "linux":
        raise UserError("data.cache=ram: only Linux has such memory; use data.cache=disk")
    limit = math.ceil(min(config.cache_gib * GIB, _MOST))
    try:
        if config.cache == "ram":
            made = _in_memory(asked, (limit or free_memory() // 2) // processes)
        else:
            made = _on_disk(asked, limit, num_samples=config.num_samples)
    except (OSError, ValueError) as error:  # ValueError: no home, or a file that is being cut
        say(f"warning: data.cache={config.cache}: {error}; pictures are decoded each time")
        return [None] * len(indices)
    for decoded in made:
        say(f"data.cache={config.cache}: {decoded}")
    rest = iter(made)
    return [None if index is None else next(rest) for index in indices]


def _in_memory(indices: Sequence[Index], room: int) -> list[DecodedPictures]:
    """Memory without a name: it goes with the last process, and isn't that of /dev/shm."""
    made: list[DecodedPictures] = []
    for index in indices:
        start, end = places(index)[[0, -1]].tolist()
        states = look(index.paths)
        descriptor = os.memfd_create("decoded pictures")
        with _closed_on_error(descriptor):
            os.ftruncate(descriptor, end)
        limit = min(end - start, room)
        room -= limit
        made.append(DecodedPictures(index, states, descriptor, limit=limit))
    return made


@contextmanager
def _closed_on_error(descriptor: int) -> Generator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


def _on_disk(indices: Sequence[Index], limit: int, *, num_samples: int) -> list[DecodedPictures]:
    """A file for each split, found again by all that decides its content."""
    folder = cache_folder() / "decoded"
    folder.mkdir(parents=True, exist_ok=True)
    made: list[DecodedPictures] = []
    with (folder / ".lock").open("ab") as lock, naming(folder):
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_leftovers(folder)
        states = [look(index.paths) for index in indices]
        paths = [
            folder / _name(index, state, sample=len(index) == num_samples)
            for index, state in zip(indices, states, strict=True)
        ]
        wanted = {p: int(np.ptp(places(index))) for p, index in zip(paths, indices, strict=True)}
        room = _make_room(folder, wanted, limit)
        for index, state, path in zip(indices, states, paths, strict=True):
            limit = min(wanted[path], room)
            room -= limit
            descriptor = _opened(path, places(index), limit)
            made.append(DecodedPictures(index, state, descriptor, limit=limit, path=path))
    return made


def _name(index: Index, states: NDArray[np.int64], *, sample: bool) -> str:
    """<the split>-<all that decides what its file holds>.rgb

    Files of one split replace each other. A sample of the pictures is a split of its own, or runs
    with different samples would take each other's files away.
    """
    # Relative paths depend on where one stands.
    ends = [os.path.abspath(index.paths[i]) for i in (0, -1) if len(index)]
    folder = os.path.commonpath(ends) if ends else ""
    split = hashlib.sha256(repr((folder, index.name)).encode())
    content = hashlib.sha256(repr((FORMAT, __version__, cv2.__version__, folder)).encode())
    for array in (index.paths.data, index.paths.ends) if sample else ():
        split.update(np.ascontiguousarray(array).data)
    for array in (index.paths.data, index.paths.ends, index.sizes, states):
        content.update(np.ascontiguousarray(array).data)
    return f"{split.hexdigest()[:16]}-{content.hexdigest()}.rgb"


def _opened(path: Path, starts: NDArray[np.int64], limit: int) -> int:
    """The descriptor of a split's file, which is made anew if it isn't as it should be.

    As long as it is open in any process, the file counts as in use.
    """
    head, size = f"decoded pictures {path.name}\n".encode(), int(starts[-1])

    def make(temporary: Path) -> None:
        temporary.write_bytes(head)
        os.truncate(temporary, size)

    if not _is_whole(path, head, size):
        replace_atomically(path, make)
    most = int(starts[0]) + limit
    if _bytes_of(path) > most and not in_use(path):  # once there was more room
        os.truncate(path, most)
        os.truncate(path, size)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with _closed_on_error(descriptor):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.pwrite(descriptor, b"\0", _FULL)  # this run tries again; the file is the one used last
    return descriptor


def _is_whole(path: Path, head: bytes, size: int) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(head)) == head and os.fstat(file.fileno()).st_size == size
    except FileNotFoundError:
        return False


def _make_room(folder: Path, wanted: Mapping[Path, int], limit: int) -> int:
    """Remove files that the wanted ones replace and, until these fit, those unused for longest.

    Returns the bytes that the wanted ones may take together. `limit` is for the whole folder; 0:
    half of what is free.
    """
    taken = {path: _bytes_of(path) for path in folder.glob("*.rgb")}
    limit = limit or (shutil.disk_usage(folder).free + sum(taken.values())) // 2
    splits = {path.name.split("-")[0] for path in wanted}
    others = [path for path in taken if path not in wanted]
    room = limit - sum(taken[path] for path in others)
    replaced = [path for path in others if path.name.split("-")[0] in splits]
    others.sort(key=lambda path: (path not in replaced, path.stat().st_mtime_ns))
    for path in others:
        if (path in replaced or room < sum(wanted.values())) and not in_use(path):
            path.unlink()
            room += taken[path]
    return max(room, 0)


def _bytes_of(path: Path) -> int:
    """What a file takes on disk, without its holes."""
    return path.stat().st_blocks * 512


def free_memory(system: Path = Path("/")) -> int:
    """Bytes that can be had, of the machine and of each control group that this process is in."""
    text = (system / "proc/meminfo").read_text()
    found = re.search(r"^MemAvailable: +(\d+) kB", text, re.MULTILINE)
    free = [int(found[1]) * 1024 if found else 0]
    names = {
        "": ("sys/fs/cgroup", "memory.max", "memory.current"),
        "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    }
    groups = system / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, kind, place = line.split(":", 2)
        if kind not in names:
            continue
        root, most, now = names[kind]
        group = system / root / place.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # not seen from here; "max"
                left = int((folder / most).read_text()) - int((folder / now).read_text())
                # The system gives up such pages of files before it calls the memory full.
                pages = re.findall(r"inactive_file (\d+)", (folder / "memory.stat").read_text())
                free.append(left + max(map(int, pages), default=0))
    return max(min(free), 0)
