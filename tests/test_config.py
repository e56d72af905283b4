"""Settings out of tables: what is accepted, what is refused, and how the refusal reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from triscale.config import apply_override, build, read_toml, to_dict
from triscale.errors import UserError


@dataclass(frozen=True)
class Inner:
    width: float = 1.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int = 1
    rate: float = 0.5
    on: bool = False
    word: str = "w"
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    anchors: tuple[tuple[float, float], ...] = ()
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, Outer()),
        ({"rate": 2}, Outer(rate=2.0)),  # a whole number is a number
        ({"limit": 3, "mode": "b", "on": True}, Outer(limit=3, mode="b", on=True)),
        ({"anchors": [[1, 2.5], [3, 4]]}, Outer(anchors=((1.0, 2.5), (3.0, 4.0)))),
        ({"inner": {"names": ["x", "y"]}}, Outer(inner=Inner(names=("x", "y")))),
    ],
)
def test_build(table: dict[str, Any], expected: Outer) -> None:
    made = build(Outer, table, where="here")
    assert made == expected
    assert type(made.rate) is float  # 2 == 2.0 would hide it
    assert build(Outer, to_dict(made), where="") == made


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"": 1}, "here: unknown key ''; known are count, rate"),
        ({"conut": 1}, "here: unknown key 'conut'; did you mean 'count'?"),
        ({"inner": {"widht": 1}}, "here.inner: unknown key 'widht'; did you mean 'width'?"),
        ({"count": True}, "here.count: expected a whole number, got True"),
        ({"count": 1.0}, "here.count: expected a whole number, got 1.0"),
        ({"on": 1}, "here.on: expected true or false, got 1"),
        ({"rate": "fast"}, "here.rate: expected a number, got 'fast'"),
        ({"rate": True}, "here.rate: expected a number, got True"),
        ({"word": 7}, "here.word: expected a text, got 7"),
        ({"mode": "c"}, "here.mode: expected one of 'a', 'b', got 'c'"),
        ({"inner": 3}, "here.inner: expected a table, got 3"),
        ({"anchors": [[1, 2, 3]]}, "here.anchors[0]: expected a list of a number x a number"),
        ({"anchors": "abc"}, "here.anchors: expected a list of"),
        ({"inner": {"names": ["x", 1]}}, "here.inner.names[1]: expected a text, got 1"),
    ],
)
def test_refused(table: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Outer, table, where="here")
    assert str(caught.value).startswith(text)


def test_unknown_key_without_a_source() -> None:
    with pytest.raises(UserError, match=r"^unknown key 'conut'; did you mean 'count'\?$"):
        build(Outer, {"conut": 1}, where="")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("s.k=", {"s": {"k": "", "old": 1}}),
        ("s.k=2", {"s": {"k": 2, "old": 1}}),
        ("s.old=2.5", {"s": {"old": 2.5}}),
        ("s.k=2007_trainval+2012_trainval", {"s": {"k": "2007_trainval+2012_trainval", "old": 1}}),
        ("s.k=a=b", {"s": {"k": "a=b", "old": 1}}),
        ("new.k=[1, 2]", {"s": {"old": 1}, "new": {"k": [1, 2]}}),
        ('s.k="7"', {"s": {"k": "7", "old": 1}}),
    ],
)
def test_override(assignment: str, expected: dict[str, Any]) -> None:
    table: dict[str, Any] = {"s": {"old": 1}}
    apply_override(table, assignment)
    assert table == expected


@pytest.mark.parametrize("assignment", ["", "=", "k=1", "s.k", "s.=1", ".k=1", "a.b.c=1"])
def test_override_refused(assignment: str) -> None:
    with pytest.raises(UserError, match=r"^--set .*: expected section\.key=value$"):
        apply_override({}, assignment)


def test_override_of_a_value_that_is_no_section() -> None:
    with pytest.raises(UserError, match="'s' is not a section"):
        apply_override({"s": 1}, "s.k=2")


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "can't be read"), (b"a = ", "not valid TOML"), (b"a = '\xff'", "is not UTF-8")],
)
def test_read_toml_names_the_file(content: bytes | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)


def test_read_toml_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_bytes(b"")
    assert read_toml(tmp_path / "empty.toml") == {}
