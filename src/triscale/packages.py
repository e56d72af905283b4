"""Packages that not every installation has, and the command that brings them.

The core runs no network of itself: torch, which trains, and onnxruntime or OpenVINO, which run what
was exported, are extras of pyproject.toml.
"""

from __future__ import annotations

from importlib.util import find_spec

from triscale.errors import UserError

# The extra that brings a package, by the name that it is imported by.
EXTRAS = {
    "torch": "train",
    "matplotlib": "train",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "runtime",
    "openvino": "openvino",
    "starlette": "serve",
    "uvicorn": "serve",
}


def is_here(package: str) -> bool:
    """Whether a package can be imported."""
    found = find_spec(package)
    return found is not None and found.origin is not None  # not a mere folder of that name


def require_packages(*packages: str, purpose: str, extra: str | None = None) -> None:
    """UserError with the command that installs them if some of the packages are missing.

    `extra` names the one to install where it isn't just those of the packages.
    """
    if missing := [package for package in packages if not is_here(package)]:
        raise UserError(_sentence(missing, purpose, extra=extra))


def explained(error: ModuleNotFoundError, purpose: str) -> UserError:
    """The same for a package that was missed by an import; raises `error` if it is our own bug."""
    package = (error.name or "triscale").partition(".")[0]
    if package == "triscale":
        raise error
    return UserError(_sentence([package], purpose))


def _sentence(missing: list[str], purpose: str, *, extra: str | None = None) -> str:
    extra = extra or ",".join(dict.fromkeys(EXTRAS[name] for name in missing if name in EXTRAS))
    wanted = f"'triscale[{extra}]'" if extra else "triscale"
    are = "isn't" if len(missing) == 1 else "aren't"
    return f"{purpose} needs {' and '.join(missing)}, which {are} installed: pip install {wanted}"
