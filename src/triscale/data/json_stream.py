"""JSON files larger than memory: the lists of their outermost object, one entry at a time.

The annotations of a million pictures are a gigabyte of text, and as Python objects more than ten.
Here a window moves over the text: an entry is decoded, handed out and forgotten. What is valid, and
what an error is called, is as in Python's `json` (RFC 8259 and NaN, Infinity), whose decoder does
the work.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from triscale.errors import UserError
from triscale.files import open_regular

_MAX_BYTES = 1 << 40
CHUNK = 1 << 20  # bytes that are read at once, unless a single value is longer
# An error or the end of a value this close to the window's end may be a token that is cut in two.
# The longest ones that aren't strings or digits: -Infinity, and \ud83d\ude00 inside a string.
_MARGIN = 16
_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


def read_lists(
    path: Path, keys: Sequence[str], *, what: str, chunk: int = CHUNK
) -> Iterator[tuple[str, Any]]:
    """(key, entry) for each entry of the lists that an object holds under `keys`, in the file's
    order; everything else is passed over.

    Raises UserError for what isn't JSON and, at the end, for a key without a list; `what` says what
    the file was taken for.
    """
    try:
        with open_regular(path, limit=_MAX_BYTES) as file:
            seen: dict[str, bool] = {}  # whether it is a list
            for key, entry in _walk(_Text(file, chunk)):
                if key not in keys:
                    continue
                if not isinstance(entry, _Begin):
                    yield key, entry
                elif key in seen:
                    raise UserError(f"{path}: expected the key '{key}' once, found it twice")
                else:
                    seen[key] = entry.is_list
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    for key in keys:
        if not seen.get(key):
            raise UserError(f"{path}: not {what}: no list '{key}' in it")


class _Begin:
    """Stands before the entries of a key."""

    def __init__(self, is_list: bool) -> None:
        self.is_list = is_list


class _Text:
    """A window that moves over the text of a file."""

    def __init__(self, file: BinaryIO, chunk: int) -> None:
        self._file, self._chunk = file, chunk
        head = file.read(4)
        self._decode = codecs.getincrementaldecoder(json.detect_encoding(head))("surrogatepass")
        self._raw_decode = json.JSONDecoder().raw_decode
        self._bytes = len(head)
        self._passed = self._lines = self._column = 0  # of the text before the window
        self.window = self._decode.decode(head)
        self.at = 0  # where we are in the window
        self.ended = False  # the window reaches the end of the file

    def more(self) -> None:
        """Let go of the text before `at`, and read on."""
        before, rest = self.window[: self.at], self.window[self.at :]
        self._passed += len(before)
        self._lines += before.count("\n")
        self._column = len(before) - before.rfind("\n") - 1 + ("\n" not in before) * self._column
        data = self._file.read(max(self._chunk, len(rest)))  # so that long values take linear time
        self._bytes += len(data)
        self.ended = not data
        try:
            self.window = rest + self._decode.decode(data, self.ended)
        except UnicodeDecodeError as error:
            place = self._bytes - len(error.object) + error.start
            raise ValueError(f"{error.encoding}: {error.reason} at byte {place}") from error
        self.at = 0

    def error(self, message: str, at: int) -> ValueError:
        """What json.loads would raise for the whole text."""
        before = self.window[:at]
        line = self._lines + before.count("\n") + 1
        column = at - before.rfind("\n") + ("\n" not in before) * self._column
        return ValueError(f"{message}: line {line} column {column} (char {self._passed + at})")

    def next(self) -> str:
        """The next character that isn't a space, which stays; '' at the end."""
        while True:
            match = _SPACE.match(self.window, self.at)
            assert match
            self.at = match.end()
            if self.at < len(self.window):
                return self.window[self.at]
            if self.ended:
                return ""
            self.more()

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = self._raw_decode(self.window, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.window) - _MARGIN or error.msg.startswith("Unterminated")
                if self.ended or not cut:
                    raise self.error(error.msg, error.pos) from error
            else:
                if self.ended or end <= len(self.window) - _MARGIN:
                    self.at = end
                    return value
            self.more()

    def entries(self) -> Iterator[Any]:
        """The entries of the list that begins here."""
        self.at += 1
        if self.next() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            match = _COMMA.match(self.window, self.at)
            if match and match.end() < len(self.window):
                self.at = match.end()
                continue
            mark = self.next()
            if mark not in ("]", ","):
                raise self.error("Expecting ',' delimiter", self.at)
            self.at += 1
            if mark == "]":
                return
            self.next()

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here, each when its value is next."""
        self.at += 1
        if self.next() == "}":
            self.at += 1
            return
        while True:
            if self.next() != '"':
                raise self.error("Expecting property name enclosed in double quotes", self.at)
            key = self.value()
            if self.next() != ":":
                raise self.error("Expecting ':' delimiter", self.at)
            self.at += 1
            self.next()
            yield key
            mark = self.next()
            if mark not in ("}", ","):
                raise self.error("Expecting ',' delimiter", self.at)
            self.at += 1
            if mark == "}":
                return


def _walk(text: _Text) -> Iterator[tuple[str, Any]]:
    """(key, _Begin) for each member of the outermost object and (key, entry) for each entry of its
    lists; other values are passed over."""
    for key in text.members() if text.next() == "{" else [""]:
        is_list = text.next() == "["
        yield key, _Begin(is_list)
        if is_list:
            for entry in text.entries():
                yield key, entry
        else:
            text.value()
    if text.next():
        raise text.error("Extra data", text.at)
