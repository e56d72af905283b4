"""The wheel and the source archive: what is in them, and that they come out the same.

Built by hatchling itself, without an environment of its own and without network. Expected values
are the files of the repository, and core metadata 2.4 (PEP 639, PEP 685).
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import triscale

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NAME = f"triscale-{triscale.__version__}"


def build(tree: Path, out: Path, *, moment: int = 1_700_000_000) -> tuple[Path, Path]:
    """The wheel and the source archive of a tree."""
    pytest.importorskip("hatchling", reason="needs hatchling: make setup")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out)],
        cwd=tree,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(moment)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / f"{NAME}-py3-none-any.whl", out / f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The two files of this tree."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def metadata(built: tuple[Path, Path]) -> Message:
    """What installers read."""
    with zipfile.ZipFile(built[0]) as wheel:
        return email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))


def sources() -> set[str]:
    """All that is in src, but for what Python and tools leave there."""
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file()]
    return {
        path.relative_to(ROOT / "src").as_posix()
        for path in files
        if "__pycache__" not in path.parts and "egg-info" not in str(path)
    }


def test_wheel_has_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    info = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL")}
    info |= {f"{NAME}.dist-info/entry_points.txt", f"{NAME}.dist-info/licenses/LICENSE"}
    assert names == sources() | info
    assert {"triscale/page.css", "triscale/page.js", "triscale/py.typed"} <= names
    assert "triscale/recipes/small.toml" in names
    kinds = {name.rpartition(".")[2] for name in names - info}
    assert kinds <= {"py", "typed", "toml", "css", "js", "html"}  # no pictures, no weights
    assert built[0].stat().st_size < 1_000_000


def test_source_archive(built: tuple[Path, Path]) -> None:
    """What the wheel is made of, and what people want to read: no tests, no pictures."""
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    beside = "CHANGELOG.md LICENSE PKG-INFO PROVENANCE.md README.md SECURITY.md pyproject.toml"
    assert names == {f"src/{name}" for name in sources()} | {*beside.split(), ".gitignore"}


def test_the_same_bytes_again(built: tuple[Path, Path], tmp_path: Path) -> None:
    """From a tree elsewhere, with other times; and the wheel from the source archive alone."""
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = tmp_path / NAME
    for path in tree.rglob("*"):
        os.utime(path, (1, 1))
    (tree / "PKG-INFO").unlink()
    again = build(tree, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]
    later = build(tree, tmp_path / "later", moment=1_800_000_000)
    assert later[0].read_bytes() != built[0].read_bytes()  # it is looked at


def test_metadata(metadata: Message) -> None:
    assert metadata["Metadata-Version"] == "2.4"
    assert metadata["Name"] == "triscale"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert extras == set(PROJECT["optional-dependencies"])
    assert extras >= {"export", "openvino", "runtime", "serve", "all"}


def test_all_is_all_that_users_need() -> None:
    """`all` names each extra but those for work on triscale itself."""
    extras = PROJECT["optional-dependencies"]
    (text,) = extras["all"]
    named = set(re.findall(r"[a-z]+", text.partition("[")[2]))
    assert named == set(extras) - {"all", "docs", "dev"}


def test_version_is_said_once(metadata: Message) -> None:
    assert metadata["Version"] == triscale.__version__
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    written = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if f'"{triscale.__version__}"' in path.read_text("utf-8")
    ]
    assert written == ["src/triscale/__init__.py"]
    assert f"\n## [{triscale.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_runs_from_the_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Unpacked, and nothing else of ours in sight."""
    shutil.unpack_archive(built[0], tmp_path / "site", "zip")
    done = subprocess.run(
        [sys.executable, "-m", "triscale", "recipes"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "gluoncv-voc" in done.stdout
