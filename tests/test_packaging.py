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
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import triscale
from tests.exported import write_exported

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
    assert extras >= {"train", "export", "openvino", "runtime", "serve", "all"}


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


def needed(metadata: Message, extras: set[str]) -> dict[str, Distribution]:
    """The packages that an installation of the wheel with these extras has, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(text, extras) for text in metadata.get_all("Requires-Dist") or []]
    while waiting:
        text, asked = waiting.pop()
        need = Requirement(text)
        if need.marker and not any(need.marker.evaluate({"extra": e}) for e in asked | {""}):
            continue
        package = distribution(need.name)
        if found.setdefault(canonicalize_name(need.name), package) is package:
            waiting += [(text, need.extras) for text in package.requires or []]
    return found


@pytest.mark.parametrize("extras", [set[str](), {"runtime"}, {"runtime", "serve"}])
def test_no_torch_without_training(metadata: Message, extras: set[str]) -> None:
    """What pip installs, as the packages' own metadata say."""
    names = set(needed(metadata, extras))
    assert {"numpy", "opencv-python-headless", "safetensors"} <= names
    assert ("onnxruntime" in names) is ("runtime" in extras)
    assert not {"torch", "matplotlib", "onnx", "sympy"} & names
    assert len(names) < 25
    assert {"torch", "matplotlib"} <= set(needed(metadata, {"train"}))


def test_installed_without_torch(
    built: tuple[Path, Path], metadata: Message, tmp_path: Path
) -> None:
    """The wheel and what `[runtime]` needs in a place of their own, and nothing else in sight."""
    site = tmp_path / "site"
    shutil.unpack_archive(built[0], site, "zip")
    for package in needed(metadata, {"runtime"}).values():
        for name in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(str(package.locate_file(name)))
    write_exported(tmp_path / "model.onnx", resize=False)
    Image.new("RGB", (50, 20), (204, 102, 51)).save(tmp_path / "picture.png")
    for words, said in (
        ("recipes", "gluoncv-voc"),
        ("predict model.onnx picture.png --json", '"score": 0.8'),
    ):
        done = subprocess.run(
            [sys.executable, "-S", "-m", "triscale", *words.split()],  # -S: no other site-packages
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
