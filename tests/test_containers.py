"""Dockerfile and compose.yaml, held against rules; building them needs Docker, which tests don't.

The rules are those of hadolint (its numbers are named) and of Docker's and OWASP's advice on
images: versions said, not root, nothing fetched by address, nothing left lying about.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from triscale.cli import make_parser

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


class Step(NamedTuple):
    """An instruction of a Dockerfile."""

    word: str
    rest: str


def steps(text: str) -> list[Step]:
    """The instructions, with continued lines joined, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Step(words[0].upper(), words[1]) for words in found]


def faults(text: str) -> Iterator[str]:
    """What breaks a rule."""
    all_steps = steps(text)
    starts = [i for i, step in enumerate(all_steps) if step.word == "FROM"]
    last = all_steps[starts[-1] :] if starts else []
    stages = {step.rest.rpartition(" AS ")[2] for step in all_steps if " AS " in step.rest}
    for word, rest in all_steps:
        if word == "FROM":
            image = rest.split()[0]
            if image not in stages and not re.search(r":\d+\.\d+\.\d+|@sha256:[0-9a-f]{64}", image):
                yield f"the base has no full version: {image}"  # DL3006, DL3007
        if word == "ADD":
            yield f"ADD fetches and unpacks; use COPY: {rest}"  # DL3020
        if word == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                if not ignored_but(source):
                    yield f"not in the build's context: {source}"
        if word == "RUN":
            yield from _run_faults(rest)
        if word in ("CMD", "ENTRYPOINT") and not rest.startswith("["):
            yield f"{word} runs in a shell, which keeps signals for itself"  # DL3025
        if word in ("ENV", "ARG") and re.search("TOKEN|SECRET|PASSWORD|KEY", rest):
            yield f"a secret in the image: {word} {rest.split('=')[0]}"
    users = [step.rest for step in last if step.word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield "runs as root, or as a name that the orchestrator can't check"  # DL3002
    if not any(step.word == "HEALTHCHECK" for step in last):
        yield "no HEALTHCHECK"


def _run_faults(rest: str) -> Iterator[str]:
    if "apt-get install" in rest:
        for words in ("--no-install-recommends", "rm -rf /var/lib/apt/lists"):  # DL3015, DL3009
            if words not in rest:
                yield f"apt-get install without {words}"
    for command in re.findall(r"pip install[^&|;]*", rest):
        if "--no-cache-dir" not in command:  # DL3042
            yield "pip install without --no-cache-dir"
    if re.search(r"\b(curl|wget)\b.*\|", rest):
        yield "runs what it fetches"  # DL4006


def ignored_but(source: str) -> bool:
    """Whether a file is there and .dockerignore lets it through."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in lines
    return (ROOT / source).exists() and f"!{source}" in lines


def test_dockerfile() -> None:
    assert list(faults(DOCKERFILE)) == []


GOOD = """FROM python:3.13.9-slim
USER 10001
HEALTHCHECK CMD ["true"]
CMD ["true"]
"""


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("", "", None),
        ("3.13.9-slim", "slim", "no full version"),
        ("python:3.13.9-slim", "python", "no full version"),
        ("USER 10001", "USER root", "as root"),
        ("USER 10001", "USER 0", "as root"),
        ("USER 10001", "USER triscale", "as root"),
        ("USER 10001\n", "", "as root"),
        ("USER 10001\n", "USER 10001\nFROM python:3.13.9-slim AS other\n", "as root"),
        ('\nCMD ["true"]\n', "\nCMD true\n", "shell"),
        ("HEALTHCHECK", "LABEL", "HEALTHCHECK"),
        ("USER", "ADD https://example.com/x.tar.gz /\nUSER", "ADD"),
        ("USER", "COPY not-there.txt /\nUSER", "not in the build's context"),
        ("USER", "COPY tests /tests\nUSER", "not in the build's context"),
        (
            "USER",
            "RUN apt-get install -y git && rm -rf /var/lib/apt/lists/*\nUSER",
            "--no-install-recommends",
        ),
        ("USER", "RUN apt-get install --no-install-recommends \\\n  git\nUSER", "rm -rf"),
        ("USER", "RUN pip install --no-cache-dir a && pip install b\nUSER", "--no-cache-dir"),
        ("USER", "RUN curl https://example.com/install.sh | sh\nUSER", "fetches"),
        ("USER", "ENV TRISCALE_TOKEN=secret\nUSER", "secret"),
    ],
)
def test_rules(before: str, after: str, fault: str | None) -> None:
    """Each rule finds what it is for, and nothing else."""
    found = list(faults(GOOD.replace(before, after, 1)))
    assert [fault in one for one in found if fault] == ([True] * len(found) if fault else [])
    assert bool(found) is bool(fault)


def test_the_container_serves() -> None:
    """What runs in it is a command of ours, where the health check looks for it."""
    last = {step.word: step.rest for step in steps(DOCKERFILE)}
    assert json.loads(last["ENTRYPOINT"]) == ["triscale"]
    command = json.loads(last["CMD"])
    assert command[:2] == ["serve", "/models/model.onnx"]
    assert f"127.0.0.1:{last['EXPOSE']}/healthz" in last["HEALTHCHECK"]
    parser = make_parser()
    if command[0] not in parser.format_help():
        pytest.skip("no such command yet: triscale serve")
    arguments = parser.parse_args(command)
    assert (arguments.host, arguments.port) == ("0.0.0.0", int(last["EXPOSE"]))


def test_the_extras_are_there() -> None:
    """The extras that the Dockerfile installs; test_packaging.py says that they bring no torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (named,) = re.findall(r"pip install [^&]*'\.\[([\w,]+)\]'", DOCKERFILE)
    assert named.split(",") == ["runtime", "serve"]
    assert set(named.split(",")) <= set(project["optional-dependencies"])


def test_compose() -> None:
    """Reached from this machine only; can't write, can't become more than it is, is bounded."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
    (service,) = services.values()
    assert (ROOT / service["build"] / "Dockerfile").is_file()
    port = next(step.rest for step in steps(DOCKERFILE) if step.word == "EXPOSE")
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit", "stop_grace_period"} <= set(service)
    assert not {"privileged", "network_mode", "pid", "user", "devices"} & set(service)
    assert all("=" not in name for name in service["environment"])  # no values in the file
