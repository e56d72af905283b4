"""Packages that may be missing. Expected values: pyproject.toml's extras."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from triscale.errors import UserError
from triscale.packages import EXTRAS, explained, is_here, require_packages

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
DISTRIBUTIONS = {"mlflow": "mlflow-skinny"}  # called otherwise than what is imported


def test_extras_bring_what_they_should() -> None:
    extras = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert DISTRIBUTIONS.get(package, package) in {Requirement(t).name for t in extras[extra]}


@pytest.mark.parametrize(
    ("packages", "extra", "said"),
    [
        ((), None, None),
        (("json", "numpy"), None, None),
        (
            ("json", "torch"),
            None,
            "it needs torch, which isn't installed: pip install 'triscale[train]'",
        ),
        (
            ("starlette", "uvicorn"),
            None,
            "it needs starlette and uvicorn, which aren't installed: pip install 'triscale[serve]'",
        ),
        (
            ("torch", "onnx"),
            None,
            "it needs torch and onnx, which aren't installed: pip install 'triscale[train,export]'",
        ),
        (
            ("torch", "onnx"),
            "export",
            "it needs torch and onnx, which aren't installed: pip install 'triscale[export]'",
        ),
        (("rich",), None, "it needs rich, which isn't installed: pip install triscale"),
    ],
)
def test_sentences(
    packages: tuple[str, ...],
    extra: str | None,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("triscale.packages.is_here", lambda name: name in ("json", "numpy"))
    if said is None:
        require_packages(*packages, purpose="it", extra=extra)
        return
    with pytest.raises(UserError) as caught:
        require_packages(*packages, purpose="it", extra=extra)
    assert str(caught.value) == said


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb` in the working directory, as runs leave it."""
    (tmp_path / "triscale_run").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_here("triscale_run")
    assert is_here("json")


def test_missed_by_an_import() -> None:
    error = ModuleNotFoundError(name="onnxruntime.quantization")
    assert str(explained(error, "it")).endswith("pip install 'triscale[runtime]'")
    ours = ModuleNotFoundError(name="triscale.nothing")
    with pytest.raises(ModuleNotFoundError):
        explained(ours, "it")
