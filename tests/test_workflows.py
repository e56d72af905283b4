"""The workflows of GitHub: pinned, with the least rights; their words exist in the repository.

The rules are those of GitHub's "Secure use reference", of November 2026.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


def test_there_are_two() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned(path: Path) -> None:
    """A tag can be moved by whoever owns the action; a commit can't."""
    lines = [line for line in path.read_text("utf-8").splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_an_action_is_the_same_everywhere() -> None:
    texts = "".join(path.read_text("utf-8") for path in WORKFLOWS)
    pins = {line.partition("@") for line in re.findall(r"uses: (.+)", texts)}
    assert len({name for name, _, _ in pins}) == len(pins)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_least_rights(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        written = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        assert written <= {"id-token", "attestations"}, name
        if "id-token" in written:  # what runs code of ours has no rights
            assert not any(".ci/run" in step.get("run", "") for step in job["steps"]), name
            assert not any("make" in step.get("run", "") for step in job["steps"]), name
        assert "${{ github.event" not in str(job), name  # text of strangers in a shell


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_runs_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    runs = [
        step["run"] for job in load(path)["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert "bash .ci/run" in runs
    for target in re.findall(r"\bmake (\w+)", " ".join(runs)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_publishing_waits_for_the_tests_and_a_person() -> None:
    jobs = load(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert any(step.get("run") == "bash .ci/run" for step in jobs["build"]["steps"])
    assert (jobs["attest"]["needs"], jobs["publish"]["needs"]) == ("build", "attest")
    assert jobs["publish"]["environment"] == "pypi"
    assert not any("password" in step.get("with", {}) for step in jobs["publish"]["steps"])
