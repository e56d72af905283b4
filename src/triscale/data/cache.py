"""Opened data sets that are kept on disk, so that the next program to open one maps it at once.

Reading a million pictures' headers and a gigabyte of JSON takes minutes, and what comes of it is
always the same. An entry is a folder of .npy files, ~/.cache/triscale/index/<key>/, whose key is a
hash of all that decides the result; inside it stand size and time of every picture that was looked
at. What doesn't fit is made anew. The arrays are mapped, not read: processes share them.

Locks (flock) keep programs apart that open the same set: one makes the entry, the others wait. An
entry is in use as long as one of its files is mapped (see `map_array`), and isn't removed then. A
folder that can't be written, or knows no locks, costs only time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triscale import __version__
from triscale.data.build import Read, Seen, look
from triscale.data.index import Index, PackedStrings, in_use, map_array
from triscale.errors import UserError
from triscale.files import cache_folder, sha256_of

FORMAT = 1  # of the entries
MIN_BYTES = 8_000_000  # of annotations: what is smaller is read in a few seconds
KEEP = 8  # entries
_ARRAYS = ("sizes", "offsets", "boxes", "labels", "difficult", "crowd", "areas")  # of an Index


def cached(
    files: Sequence[Path],
    make: Callable[[], list[Read]],
    *,
    facts: object,
    min_bytes: int = MIN_BYTES,
) -> list[Read]:
    """What `make()` returns, or returned at another time for `files` with the same content and for
    the same `facts` (JSON), as long as the pictures it saw are still the same."""
    before = look([str(file) for file in files])
    if before[:, 0].sum() < min_bytes:
        return make()
    try:
        entry = cache_folder() / "index" / _key(files, facts)
        entry.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, UserError):
        return make()
    while True:
        with _locked(entry, fcntl.LOCK_SH) as held:
            if not held:
                return make()
            mark = _mark(entry)
            splits = _load(entry)
            if splits and _is_fresh(splits):
                return splits
        with _locked(entry, fcntl.LOCK_EX) as held:
            if held and _mark(entry) != mark:
                continue  # another process has just made it
            splits = make()
            unchanged = np.array_equal(look([str(file) for file in files]), before)
            if held and unchanged and _save(entry, splits):
                splits = _load(entry) or splits
                _remove_oldest(entry.parent)
            return splits


def _key(files: Sequence[Path], facts: object) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, __version__, facts]).encode())
    for file in files:
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()


@contextmanager
def _locked(entry: Path, kind: int) -> Generator[bool]:
    """Hold the lock of an entry, waiting for it unless `kind` says otherwise; False: it can't be
    had."""
    try:
        path = _lock_of(entry)
        file = path.open("ab")
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, kind)
            # The one who removed the entry in the meantime removed the lock as well.
            held = os.fstat(file.fileno()).st_nlink > 0
        except OSError:
            held = False
        yield held


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")


def _mark(entry: Path) -> tuple[int, int] | None:
    """What changes when the entry is made anew."""
    try:
        found = os.stat(entry / "meta.json")
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_fresh(splits: list[Read]) -> bool:
    """Whether the pictures are as they were."""
    return all(
        split.seen is not None
        and np.array_equal(look(split.seen.paths), split.seen.states)
        and all(Path(folder).is_dir() == there for folder, there in split.seen.folders.items())
        for split in splits
    )


def _save(entry: Path, splits: list[Read]) -> bool:
    """Write an entry in place of the one that may be there; whether it could be done."""
    fresh, old = entry.with_name(f".{entry.name}.tmp"), entry.with_name(f".{entry.name}.old")
    try:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        body = [_write(split, fresh, prefix=f"{i}-") for i, split in enumerate(splits)]
        (fresh / "meta.json").write_text(json.dumps({"body": body, "sha256": _digest(body)}))
        if entry.exists():
            entry.rename(old)
        fresh.rename(entry)
        shutil.rmtree(old, ignore_errors=True)  # whoever has it mapped keeps the pages
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        return False
    return True


def _write(split: Read, folder: Path, *, prefix: str) -> dict[str, Any]:
    """Write the arrays of a split; the rest of it, and the names of the files, for meta.json."""
    index, seen = split.index, split.seen
    assert seen is not None
    strings = {"paths": index.paths, "ids": index.ids, "seen": seen.paths}
    arrays = {name: getattr(index, name) for name in _ARRAYS} | {"states": seen.states}
    for name, packed in strings.items():
        arrays |= {f"{name}_data": packed.data, f"{name}_ends": packed.ends}
    files: dict[str, str] = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        np.save(path, array, allow_pickle=False)
        # A path stands for one content for ever: a process that gets it can't map another.
        files[name] = f"{prefix}{name}-{sha256_of(path)}.npy"
        path.rename(folder / files[name])
    return {
        "name": index.name,
        "classes": index.classes,
        "inclusive": index.inclusive,
        "skipped": split.skipped,
        "folders": seen.folders,
        "prefixes": {name: packed.prefix for name, packed in strings.items()},
        "files": files,
    }


def _load(entry: Path) -> list[Read] | None:
    """What an entry holds; None if there is none, or a damaged one."""
    try:
        meta = json.loads((entry / "meta.json").read_bytes())
        if meta["sha256"] != _digest(meta["body"]):
            return None
        splits = [_read(entry, part) for part in meta["body"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    with suppress(OSError):
        os.utime(entry)  # used last
    return splits


def _read(entry: Path, part: dict[str, Any]) -> Read:
    arrays: dict[str, NDArray[Any]] = {}
    for name, file in part["files"].items():
        arrays[name] = map_array(entry / file)
        if not file.endswith(f"-{sha256_of(entry / file)}.npy"):
            raise ValueError(f"{file}: damaged")

    def strings(name: str) -> PackedStrings:
        data, ends = arrays[f"{name}_data"], arrays[f"{name}_ends"]
        return PackedStrings.of(data, ends, part["prefixes"][name])

    index = Index(
        name=part["name"],
        classes=tuple(part["classes"]),
        paths=strings("paths"),
        ids=strings("ids"),
        **{name: arrays[name] for name in _ARRAYS},
        inclusive=part["inclusive"],
    )
    seen = Seen(strings("seen"), arrays["states"], part["folders"])
    return Read(index, tuple(part["skipped"]), seen)


def _remove_oldest(folder: Path) -> None:
    """Keep the KEEP entries that were used last, and those in use; clear up after the killed."""
    with suppress(OSError):
        entries = [path for path in folder.iterdir() if re.fullmatch("[0-9a-f]{64}", path.name)]
        entries.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        leftovers = [path for end in ("tmp", "old") for path in folder.glob(f".*.{end}")]
        for entry in [*entries[KEEP:], *(folder / path.name[1:-4] for path in leftovers)]:
            with _locked(entry, fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
                if not held or any(in_use(path) for path in entry.glob("*.npy")):
                    continue
                for path in (entry, *leftovers):
                    if entry.name in path.name:
                        shutil.rmtree(path, ignore_errors=True)
                _lock_of(entry).unlink(missing_ok=True)


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
