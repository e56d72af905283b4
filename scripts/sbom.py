"""What triscale brings along: the packages that its extras need, their licences, a bill of them.

    python scripts/sbom.py [EXTRA ...]               a table; exit code 1 if a licence isn't allowed
    python scripts/sbom.py --out FILE [EXTRA ...]    CycloneDX 1.6, for scanners

Needs and licences are those that the packages installed here state themselves (core metadata, PEP
639 and before); what isn't installed is named. Format: cyclonedx.org/docs/1.6/json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import tomllib
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

# What may be used beside Apache-2.0 without terms for triscale's users: permissive licences, and
# the MPL, which binds the files of that package only. SPDX identifiers.
ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause"),
    *("BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0"),
    *("Unlicense", "Zlib"),
}
# The same as packages wrote them before there were identifiers: classifiers, and first lines.
ALLOWED_NAMES = {
    "3-Clause BSD License",
    "Apache 2.0",
    "Apache License, Version 2.0",
    "Apache Software License",
    "BSD",
    "BSD License",
    "FreeBSD",  # BSD-2-Clause
    "ISC License (ISCL)",
    "MIT License",
    "Mozilla Public License 2.0 (MPL 2.0)",
    "Python Software Foundation License",
}
# Whatever they state, with the reason; the first letters of a name.
EXCEPTIONS = {
    "nvidia-": "NVIDIA's CUDA libraries: proprietary, free to use; torch's CUDA builds need them",
    "cuda-": "as nvidia-",
}


class Package(NamedTuple):
    """An installed package."""

    name: str  # normalised
    version: str
    licence: str  # as stated: an SPDX expression or names
    needs: tuple[str, ...]  # names of packages


def licence_of(package: Distribution) -> str:
    """What a package states: an SPDX expression, else its classifiers, else a first line; or ''."""
    data = package.metadata
    if expression := data.get("License-Expression"):
        return expression
    classifiers = [c.split(" :: ") for c in data.get_all("Classifier") or []]
    if names := sorted(c[-1] for c in classifiers if c[0] == "License" and len(c) > 1):
        return " AND ".join(names)
    return (data.get("License") or "").strip().split("\n")[0]


def is_allowed(name: str, licence: str) -> bool:
    """Whether triscale may need it. AND binds closer than OR; with parentheses all must do."""
    if name.startswith(tuple(EXCEPTIONS)):
        return True
    choices = re.sub("[()]", "", licence).split(" OR ")
    every = all if "(" in licence and licence not in ALLOWED_NAMES else any
    known = ALLOWED | ALLOWED_NAMES
    return licence in known or every(set(c.split(" AND ")) <= known for c in choices)


def declared(extras: Iterable[str]) -> list[Requirement]:
    """What pyproject.toml asks for: the core's needs and those of the extras, with theirs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    waiting = list(extras)
    while waiting:
        for need in map(Requirement, project["optional-dependencies"][waiting.pop()]):
            if need.name == "triscale":
                waiting += need.extras
            else:
                found.append(need)
    return found


def closure(requirements: Iterable[Requirement]) -> tuple[dict[str, Package], list[str]]:
    """All packages that these need, here, by name; and the names of those that aren't installed."""
    found: dict[str, Package] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()  # name, extra
    waiting = list(requirements)
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        extras = {"", *wanted.extras}
        if all((name, extra) in seen for extra in extras):
            continue
        seen |= {(name, extra) for extra in extras}
        try:
            package = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        needs = [r for r in map(Requirement, package.requires or []) if _applies(r, extras)]
        names = {canonicalize_name(need.name) for need in needs}
        names |= set(found[name].needs) if name in found else set()
        found[name] = Package(name, package.version, licence_of(package), tuple(sorted(names)))
        waiting += needs
    return dict(sorted(found.items())), sorted(missing)


def _applies(need: Requirement, extras: Iterable[str]) -> bool:
    return not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in extras)


def cyclonedx(
    packages: dict[str, Package], roots: Iterable[str], *, version: str
) -> dict[str, Any]:
    """The bill of materials; the same for the same packages and SOURCE_DATE_EPOCH."""
    own = f"pkg:pypi/triscale@{quote(version)}"
    refs = {name: f"pkg:pypi/{name}@{quote(one.version)}" for name, one in packages.items()}
    needed = {own: sorted(refs[name] for name in set(roots) if name in refs)}
    for name, package in packages.items():
        needed[refs[name]] = [refs[need] for need in package.needs if need in refs]
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    this = {"type": "application", "bom-ref": own, "name": "triscale", "version": version}
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)),
            "component": {**this, "purl": own, "licenses": [{"license": {"id": "Apache-2.0"}}]},
        },
        "components": [
            {
                "type": "library",
                "bom-ref": refs[name],
                "name": name,
                "version": package.version,
                "purl": refs[name],
                "licenses": _licences(package.licence),
            }
            for name, package in packages.items()
        ],
        "dependencies": [{"ref": ref, "dependsOn": needs} for ref, needs in needed.items()],
    }
    content = json.dumps(bill, sort_keys=True)
    return {**bill, "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"}


def _licences(licence: str) -> list[dict[str, Any]]:
    if set(re.split(" AND | OR ", licence)) <= ALLOWED:
        return [{"expression": licence}]
    return [{"license": {"name": name}} for name in licence.split(" AND ") if name]


def table(packages: dict[str, Package]) -> Iterator[str]:
    """A line per package; those that may not be used are marked."""
    for package in packages.values():
        mark = "" if is_allowed(package.name, package.licence) else "  NOT ALLOWED"
        yield f"{package.name} {package.version}: {package.licence or 'not stated'}{mark}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="What triscale brings along.")
    parser.add_argument("extras", nargs="*", metavar="EXTRA")
    parser.add_argument("--out", metavar="FILE", help="write CycloneDX")
    arguments = parser.parse_args()
    roots = declared(arguments.extras)
    packages, missing = closure(roots)
    if missing:
        print(f"not installed, so not looked at: {', '.join(missing)}", file=sys.stderr)
    if arguments.out:
        own = re.search('__version__ = "(.+)"', (ROOT / "src/triscale/__init__.py").read_text())
        assert own
        names = [canonicalize_name(root.name) for root in roots]
        bill = cyclonedx(packages, names, version=own[1])
        Path(arguments.out).write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    else:
        print("\n".join(table(packages)))
    allowed = all(is_allowed(package.name, package.licence) for package in packages.values())
    return int(not allowed or bool(missing))


if __name__ == "__main__":
    sys.exit(main())
