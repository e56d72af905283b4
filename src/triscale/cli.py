"""The command line: arguments in, one clear line out when something is wrong.

Exit codes: 0 done, 1 a bug (with its traceback), 2 a mistake in the input, 3 out of memory, 4
another process of the run is gone, 75 stopped on request with everything saved (EX_TEMPFAIL of
sysexits.h: call again), 130 stopped by Ctrl-C. Nothing heavy is imported before the arguments are
known to be right.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from triscale import __version__
from triscale.commands import (
    anchors,
    bench,
    check,
    convert,
    download,
    evaluate,
    export,
    predict,
    preview,
    recipes,
    report,
    serve,
    train,
)
from triscale.errors import OutOfMemoryError, ProcessLostError, UserError, ran_out_of_memory
from triscale.interrupt import Interrupted, leave_undisturbed
from triscale.packages import explained

_COMMANDS = {
    "check": check,
    "preview": preview,
    "anchors": anchors,
    "train": train,
    "eval": evaluate,
    "report": report,
    "predict": predict,
    "export": export,
    "serve": serve,
    "bench": bench,
    "convert": convert,
    "download": download,
    "recipes": recipes,
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of `triscale`; `run` in its result is what the command does."""
    parser = argparse.ArgumentParser(
        prog="triscale", description="Train, evaluate and use YOLOv3-family object detectors."
    )
    parser.add_argument("--version", action="version", version=f"triscale {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in _COMMANDS.items():
        own = commands.add_parser(name, help=command.HELP)
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return the exit code."""
    # names of files and classes may hold what this terminal can't show
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.exit(2, f"{parser.format_help()}\ntriscale: error: name one of the commands\n")
    return guarded(lambda: arguments.run(arguments))


def guarded(run: Callable[[], None]) -> int:
    """Call `run`; a mistake of the user's becomes one line on stderr and an exit code."""
    try:
        run()
        if sys.stdout is not None:  # closed: `>&-`
            sys.stdout.flush()  # here, where a closed pipe can still be caught
    except UserError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:  # of an extra
        return _fail(str(explained(error, "this")), 2)
    except BrokenPipeError:  # `triscale ... | head`: nobody is listening any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Interrupted as error:
        leave_undisturbed()  # so that the exit code arrives
        return _fail(str(error), 75)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except ProcessLostError as error:
        return _fail(str(error), 4)
    except OutOfMemoryError as error:
        return _fail(str(error), 3)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}", 2)
    except Exception as error:
        # torch raises it wherever the process happens to be
        if str(error).startswith("DataLoader worker"):
            return _fail(f"a data loading process died: {str(error).splitlines()[0]}", 2)
        if not ran_out_of_memory(error):
            raise
        return _fail(
            "out of memory; try a smaller --batch-size or --size, or --set "
            "augment.shape_max=... for smaller random shapes",
            3,
        )
    return 0


def _fail(text: str, code: int) -> int:
    if text:
        print(f"triscale: {'' if code in (75, 130) else 'error: '}{text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
