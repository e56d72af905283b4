"""The exception for mistakes that a user can mend, and what else is no bug of ours.

Everything that is wrong with the *input* (a file, a label, a flag, a recipe) is raised as
`UserError`, whose text is a finished sentence for a person: what was looked at, what was expected,
what was found, what to do. The command line prints it and exits with 2; any other exception is a
bug in triscale and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """Input that can't be used; `str(error)` names the file and the object and says what to do."""


class ProcessLostError(RuntimeError):
    """Another process of a run on several is gone; what happened to it, only it can say."""


class OutOfMemoryError(MemoryError):
    """Memory ran out where it was tried on purpose; `str(error)` is the advice."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the host numpy says so by type, torch only by text."""
    names = {cls.__name__ for cls in type(error).__mro__}
    words = ("can't allocate", "Insufficient memory")  # of torch, of OpenCV
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or any(w in str(error) for w in words)


class DataError(UserError):
    """A data set that can't be used as it is; `problems` holds one line per broken thing."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(problems))  # both, so that it survives a process border
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n  ".join([str(self.args[0]), *self.problems])
