"""The folder of a data set: what its lists and links name must lie in it.

Data sets come from anywhere, and a list or a link may name any file of the machine. What is opened
lies in the folder, also after links and `..` are followed, unless its owner says otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path

from triscale.errors import UserError


class DataRoot:
    """The folder of a data set; it may be a link itself.

    Each folder is resolved once, and a file only if it is a link.
    """

    def __init__(self, folder: Path, *, outside: bool = False) -> None:
        self.folder = folder
        self.outside = outside  # `data.outside`: whatever the data set names may be read
        self._real = os.path.join(_resolved(folder), "")
        self._inside: dict[str, bool] = {}  # by folder, as written

    def require(self, path: Path) -> None:
        """UserError if `path` is there, but outside of the data set."""
        if self.outside:
            return
        folder = os.path.dirname(path)
        if folder not in self._inside:
            self._inside[folder] = self.holds(folder)
        inside = self.holds(path) if os.path.islink(path) else self._inside[folder]
        if not inside and os.path.exists(path):
            raise UserError(
                f"{path}: lies outside of the data set {self.folder} (it is {_resolved(path)}); "
                "if that is meant, add --set data.outside=true"
            )

    def holds(self, path: Path | str) -> bool:
        """Whether `path`, with its links followed, is this folder or lies in it."""
        return os.path.join(_resolved(path), "").startswith(self._real)


def _resolved(path: Path | str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # not the name of a file: opening it will say so
        return os.path.abspath(path)
