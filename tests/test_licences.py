"""Licences of all that triscale needs, and the bill of materials.

Expected values from outside: SPDX's identifiers and the precedence of its operators (SPDX 3, annex
B), CycloneDX 1.6's required fields.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    """scripts/sbom.py"""
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stating(*fields: tuple[str, str]) -> Distribution:
    """A package with these fields in its metadata."""
    message = Message()
    for name, value in fields:
        message[name] = value
    return cast("Distribution", SimpleNamespace(metadata=message))


OSI = "License :: OSI Approved :: "


@pytest.mark.parametrize(
    ("fields", "licence", "allowed"),
    [
        ([], "", False),
        ([("License", "")], "", False),
        ([("License", "UNKNOWN")], "UNKNOWN", False),
        ([("License-Expression", "MIT")], "MIT", True),
        ([("License-Expression", "GPL-3.0-or-later")], "GPL-3.0-or-later", False),
        ([("License-Expression", "AGPL-3.0-only")], "AGPL-3.0-only", False),
        ([("License-Expression", "LGPL-2.1-only")], "LGPL-2.1-only", False),
        ([("License-Expression", "MIT OR GPL-2.0-only")], "MIT OR GPL-2.0-only", True),
        ([("License-Expression", "MIT AND GPL-2.0-only")], "MIT AND GPL-2.0-only", False),
        (
            [("License-Expression", "GPL-2.0-only OR MIT AND ISC")],
            "GPL-2.0-only OR MIT AND ISC",
            True,
        ),
        (
            [("License-Expression", "MIT AND (ISC OR GPL-2.0-only)")],
            "MIT AND (ISC OR GPL-2.0-only)",
            False,  # it would be, but nothing with parentheses is thought through
        ),
        ([("License-Expression", "MIT AND (ISC OR Zlib)")], "MIT AND (ISC OR Zlib)", True),
        (
            [("License-Expression", "Apache-2.0 WITH LLVM-exception")],
            "Apache-2.0 WITH LLVM-exception",
            True,
        ),
        ([("License", "MIT\nand its text")], "MIT", True),
        ([("License", "GPLv3"), ("Classifier", OSI + "MIT License")], "MIT License", True),
        (
            [("Classifier", OSI + "MIT License"), ("Classifier", OSI + "GNU GPLv3")],
            "GNU GPLv3 AND MIT License",
            False,
        ),
        ([("Classifier", "Topic :: Games")], "", False),
        ([("Classifier", OSI + "GNU Affero General Public License v3")], None, False),
    ],
)
def test_licences(
    sbom: ModuleType, fields: list[tuple[str, str]], licence: str | None, allowed: bool
) -> None:
    stated = sbom.licence_of(stating(*fields))
    assert licence in (None, stated)
    assert sbom.is_allowed("some-package", stated) is allowed


def test_exceptions_are_explained(sbom: ModuleType) -> None:
    assert sbom.is_allowed("nvidia-cudnn-cu13", "LicenseRef-NVIDIA-Proprietary")
    document = (ROOT / "docs" / "licences.md").read_text("utf-8")
    for start in sbom.EXCEPTIONS:
        assert f"`{start}*`" in document, start


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_every_dependency_may_be_used(sbom: ModuleType, extra: str) -> None:
    """Of the core and of each extra; `make setup` installs all of them."""
    packages, missing = sbom.closure(sbom.declared([extra] if extra else []))
    assert len(packages) > 10
    refused = [one for one in packages.values() if not sbom.is_allowed(one.name, one.licence)]
    assert refused == []
    assert missing == []


def test_mozillas_licence_is_explained(sbom: ModuleType) -> None:
    """docs/licences.md names each package under it that users get, and those we work with."""
    document = (ROOT / "docs" / "licences.md").read_text("utf-8")
    packages, _ = sbom.closure(sbom.declared(["dev"]))
    for package in packages.values():
        if "MPL" in package.licence:
            assert f"`{package.name}`" in document, package.name


def test_closure(sbom: ModuleType) -> None:
    """An extra's needs, those of its needs, what isn't there; by the metadata of requests 2."""
    packages, missing = sbom.closure([Requirement("requests"), Requirement("No_Such.Package")])
    assert set(packages) == {"certifi", "charset-normalizer", "idna", "requests", "urllib3"}
    assert packages["requests"].needs == ("certifi", "charset-normalizer", "idna", "urllib3")
    assert missing == ["no-such-package"]
    assert sbom.closure([]) == ({}, [])


def test_bill(sbom: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    packages = {
        "a": sbom.Package("a", "1+cpu", "MIT", ("b", "elsewhere")),
        "b": sbom.Package("b", "2", "BSD License", ()),
        "c": sbom.Package("c", "3", "", ()),
    }
    bill = sbom.cyclonedx(packages, ["a"], version="0.1")
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    uuid = r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    assert re.fullmatch(uuid, bill["serialNumber"])
    assert bill["metadata"]["timestamp"] == "1970-01-01T00:00:00Z"
    assert [(c["type"], c["name"], c["version"]) for c in bill["components"]] == [
        ("library", "a", "1+cpu"),
        ("library", "b", "2"),
        ("library", "c", "3"),
    ]
    assert [c["licenses"] for c in bill["components"]] == [
        [{"expression": "MIT"}],
        [{"license": {"name": "BSD License"}}],
        [],
    ]
    assert bill["dependencies"] == [
        {"ref": "pkg:pypi/triscale@0.1", "dependsOn": ["pkg:pypi/a@1%2Bcpu"]},
        {"ref": "pkg:pypi/a@1%2Bcpu", "dependsOn": ["pkg:pypi/b@2"]},
        {"ref": "pkg:pypi/b@2", "dependsOn": []},
        {"ref": "pkg:pypi/c@3", "dependsOn": []},
    ]
    assert bill == sbom.cyclonedx(packages, ["a"], version="0.1")
    assert bill["serialNumber"] != sbom.cyclonedx({}, [], version="0.1")["serialNumber"]


def test_command(
    sbom: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sbom.py", "serve"])
    assert sbom.main() == 0
    assert "starlette" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sbom.py", "--out", str(tmp_path / "bill.json")])
    assert sbom.main() == 0
    assert '"name": "numpy"' in (tmp_path / "bill.json").read_text()
    monkeypatch.setattr(sbom, "ALLOWED", set())
    monkeypatch.setattr(sys, "argv", ["sbom.py"])
    assert sbom.main() == 1
    assert "NOT ALLOWED" in capsys.readouterr().out
