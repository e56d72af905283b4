"""Typed settings out of nested dictionaries, with errors that a person can act on.

Each part of the package owns a small frozen dataclass; `build` fills one from a parsed TOML table
and refuses unknown keys (naming the nearest one) and wrong types. There is no registry and nothing
dynamic: what a dataclass declares is what a recipe may say.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import reprlib
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from triscale.errors import UserError
from triscale.files import read_regular

T = TypeVar("T")

MAX_TOML_BYTES = 1 << 20
_MAX_DOTS = 1000  # in a line: tomllib's time grows with the square of a dotted key's length


def build(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls` from `values`; `where` names the source in errors.

    Raises UserError for an unknown key or a value of the wrong type.
    """
    hints = get_type_hints(cls)
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            at = f"{where}: " if where else ""
            raise UserError(f"{at}unknown key {shown(key)}{nearest(key, hints)}")
        made[key] = _convert(value, hints[key], f"{where}.{key}" if where else key)
    config = cls(**made)  # its own checks know better what to say about infinity
    for key, value in made.items():
        if isinstance(value, float) and not math.isfinite(value):
            at = f"{where}.{key}" if where else key
            raise UserError(f"{at}: expected a finite number, got {value}")
    return config


def nearest(word: str, known: Any) -> str:
    """`; did you mean 'x'?` for the closest known word, else the list of all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def to_dict(config: Any) -> dict[str, Any]:
    """The opposite of `build`: plain dictionaries and lists, ready for TOML and JSON."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if getattr(config, field.name) is not None  # TOML has no null: an absent key is the default
    }


def read_toml(path: Path) -> dict[str, Any]:
    """A parsed TOML file; UserError if it can't be read or parsed."""
    data = read_regular(path, limit=MAX_TOML_BYTES)
    try:
        return _parse(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a TOML file (byte {error.start} is not UTF-8)") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error


def require_amounts(config: object, section: str, *keys: str) -> None:
    """UserError unless these keys of a section are 0 or positive, and finite."""
    for key in keys:
        value = getattr(config, key)
        if not 0 <= value < math.inf:
            raise UserError(f"{section}.{key}: expected 0 or a positive number, got {value}")


def key_of(assignment: str) -> str:
    """The key of `section.key=value`."""
    return assignment.partition("=")[0].strip()


def quoted(key: str, value: str | list[str]) -> str:
    """`section.key=value` for a text that may look like a number, or hold quotes itself."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def apply_override(table: dict[str, Any], assignment: str) -> None:
    """Put `section.key=value` into nested `table`; value is TOML, or else taken as a string."""
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) != 2:
        raise UserError(f"--set {assignment}: expected section.key=value")
    try:
        value = _parse(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        value = text  # a bare word: --set data.train=2007_trainval
    section = table.setdefault(keys[0], {})
    if not isinstance(section, dict):
        raise UserError(f"--set {assignment}: '{keys[0]}' is not a section")
    section[keys[1]] = value


def shown(value: object) -> str:
    """`value` for a message: short, however long or deeply nested it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxlong = 100
    try:
        return short.repr(value)
    except ValueError:  # Python doesn't write whole numbers of more than 4300 digits
        return "a number with thousands of digits"


def _parse(text: str) -> dict[str, Any]:
    """Parsed TOML; ValueError or RecursionError if it can't be."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > _MAX_DOTS:
            raise ValueError(f"more than {_MAX_DOTS} dots (at line {number})")
    return tomllib.loads(text)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, exactly: 1 is not true, 1.5 is not 1, but 1 is 1.0."""
    if type(value) is int and value.bit_length() > 64:  # TOML promises 64 bits
        raise UserError(f"{where}: expected a number of at most 64 bits, got {shown(value)}")
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert(value, next(a for a in args if a is not type(None)), where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, where=where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, (list, tuple)):
        if args[-1] is Ellipsis:
            return tuple(_convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
        if len(args) == len(value):
            return tuple(
                _convert(v, a, f"{where}[{i}]")
                for i, (v, a) in enumerate(zip(value, args, strict=True))
            )
    if origin is not None and get_args(hint) and value in args and origin is not tuple:
        return value  # Literal
    if hint is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is hint:
        return value
    raise UserError(f"{where}: expected {_name(hint)}, got {shown(value)}")


def _name(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        return "a list of " + " x ".join(_name(a) for a in args if a is not Ellipsis)
    if origin is not None:
        return "one of " + ", ".join(repr(a) for a in args)
    known = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return known.get(hint, "a table")
