"""Every reader answers rightly or refuses with a UserError that names the file, whatever is done to
its files.

TRISCALE_FUZZ_INPUTS says how many inputs each reader gets, TRISCALE_FUZZ_SEED which ones; `make
fuzz` takes many, with a new seed, and prints it. TRISCALE_FUZZ_ONLY repeats a single one.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutations import damaged, replaced
from tests.fuzz.readers import READERS
from tests.fuzz.watching import HangError, watched
from triscale.errors import UserError

INPUTS = int(os.environ.get("TRISCALE_FUZZ_INPUTS", "150"))
SEED = os.environ.get("TRISCALE_FUZZ_SEED", "0")
ONLY = os.environ.get("TRISCALE_FUZZ_ONLY", "")


@pytest.mark.parametrize("name", READERS)
def test_the_valid_input_is_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.make(tmp_path)
    reader.check(tmp_path, reader.open(tmp_path, False))


@pytest.mark.parametrize("name", READERS)
def test_damaged_input_is_read_rightly_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    valid = tmp_path / "valid"
    valid.mkdir()
    reader.make(valid)
    files = sorted(path.relative_to(valid) for path in valid.rglob("*") if path.is_file())
    if name in ("data file", "recipe"):
        files = [file for file in files if file.suffix == ".toml"]
    outcomes: Counter[str] = Counter()
    failures: dict[str, str] = {}
    root = tmp_path / "it"
    shutil.copytree(valid, root)
    for number in [int(ONLY)] if ONLY else range(INPUTS):
        rng = Random(f"{SEED}/{name}/{number}")
        file = rng.choice(files)
        if rng.random() < 0.05:
            replaced(root / file, rng)
        else:
            (root / file).write_bytes(damaged((valid / file).read_bytes(), file.suffix, rng))
        failure = _try(name, root, rng.random() < 0.7, outcomes)
        if failure:
            kept = f"number {number}, {file}"
            failures.setdefault(failure[0], f"{kept}\n{failure[1]}")
            outcomes[failure[0]] += 1
        _restore(valid / file, root / file)
    print(f"\n{name}: seed {SEED}: {dict(outcomes)}")
    told = "\n\n".join(f"{where}: {what}" for where, what in failures.items())
    assert not failures, f"seed {SEED}, {sum(outcomes.values())} inputs\n{told}"


def _try(name: str, root: Path, skip: bool, outcomes: Counter[str]) -> tuple[str, str] | None:
    """None if all is well, else the kind of failure and all about it."""
    reader = READERS[name]
    try:
        with watched():
            answer = reader.open(root, skip)
    except UserError as error:
        outcomes["refused"] += 1
        # the values of a recipe are named by section and key, and an empty split by its name
        places = (str(root), "no usable picture", "/etc/passwd", "/dev/zero")
        named = name == "recipe" or any(place in str(error) for place in places)
        return None if named else ("names no file", str(error)[:500])
    except (Exception, HangError) as error:
        last = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in last if "/triscale/" in frame.filename] or last
        where = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return where, "".join(traceback.format_exception(error))[-3000:]
    try:
        reader.check(root, answer)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"wrong answer, {frame.line}", "".join(traceback.format_exception(error))[-2000:]
    outcomes["read"] += 1
    return None


def _restore(valid: Path, path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    shutil.copyfile(valid, path)
