"""The one exception for mistakes that a user can mend.

Everything that is wrong with the *input* (a file, a label, a flag, a recipe) is raised as
`UserError`, whose text is a finished sentence for a person: what was looked at, what was expected,
what was found, what to do. The command line prints it and exits with 2; any other exception is a
bug in triscale and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """Input that can't be used; `str(error)` names the file and the object and says what to do."""


class DataError(UserError):
    """A data set that can't be used as it is; `problems` holds one line per broken thing."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(problems))  # both, so that it survives a process border
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n  ".join([str(self.args[0]), *self.problems])
