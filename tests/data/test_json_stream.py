"""The streaming reader against json.loads: the same entries, and the same files refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triscale.data.json_stream import read_lists
from triscale.errors import UserError

KEYS = ("a", "b")


def entries(path: Path, *, chunk: int = 7) -> list[tuple[str, str]]:
    """Keys and entries as text, because NaN isn't equal to itself."""
    found = read_lists(path, KEYS, what="such a file", chunk=chunk)
    return [(key, json.dumps(entry)) for key, entry in found]


def oracle(data: bytes) -> list[tuple[str, str]] | None:
    """What json.loads finds; None: not JSON, or not with two lists."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in KEYS):
        return None
    return [(key, json.dumps(e)) for key, value in content.items() if key in KEYS for e in value]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "some.json"


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        '{"a": [], "b": []}',
        '{"b":[1],"a":[2]}',
        '\n{"a"\t:[\r1 , -2.5e-3,1E+10 , 12345678901234567890123, NaN, -Infinity ],"b":[]}\n',
        '{"a": [true, null, "", "\\u00e9\\ud83d\\ude00 \\" ] }", "größe", [[], {}]], "b": []}',
        '{"c": {"a": [1]}, "x": [[1], {"b": [2]}], "y": "a", "a": [{"b": [3]}], "b": [4]}',
        f'{{"c": "{"long " * 500}", "a": [{"[" * 90}{"]" * 90}], "x": [{"1," * 900}1], "b": []}}',
    ],
)
def test_the_entries_are_those_of_json_loads(path: Path, text: str, chunk: int) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32-be"):
        path.write_bytes(text.encode(encoding))
        assert entries(path, chunk=chunk) == oracle(text.encode())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), VALUES | st.lists(VALUES))
TEXTS = st.builds(
    lambda content, indent, plain: json.dumps(content, indent=indent, ensure_ascii=plain),
    DOCUMENTS.map(lambda content: {"a": [], "b": [], **content}),
    st.none() | st.integers(0, 3),
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, chunk=st.integers(1, 40))
def test_any_file_in_pieces_of_any_size(path: Path, text: str, chunk: int) -> None:
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    expected = oracle(data)
    if expected is None:
        with pytest.raises(UserError, match="not such a file: no list"):
            entries(path, chunk=chunk)
    else:
        assert entries(path, chunk=chunk) == expected


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, chunk=st.integers(1, 40), data=st.data())
def test_a_damaged_file_is_refused_if_json_loads_refuses_it(
    path: Path, text: str, chunk: int, data: st.DataObject
) -> None:
    whole = text.encode("utf-8", "surrogatepass")
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 3)))
    patch = data.draw(
        st.sampled_from([b"", b",", b'"', b"]", b"}", b"[", b"\\", b"\xff", b"0", b".", b" "])
    )
    damaged = whole[:start] + patch + whole[stop:]
    path.write_bytes(damaged)
    try:
        json.loads(damaged)
    except ValueError:
        with pytest.raises(UserError, match=r"not valid JSON|found it twice"):
            entries(path, chunk=chunk)
        return
    try:
        found = entries(path, chunk=chunk)
    except UserError as error:
        assert "no list" in str(error) or "found it twice" in str(error)  # noqa: PT017
    else:
        assert found == oracle(damaged)


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON (Expecting value: line 1 column 1 (char 0))"),
        (b'{"a": [1,\n2', "not valid JSON (Expecting ',' delimiter: line 2 column 2 (char 11))"),
        (b'{"a": [1,\n 2 3', "not valid JSON (Expecting ',' delimiter: line 2 column 4 (char 13))"),
        (b'{"a": [{"b": "x', "not valid JSON (Unterminated string starting at: line 1 column 14"),
        (b'{\n\n"a": [],\n "b" []}', "Expecting ':' delimiter: line 4 column 6 (char 17)"),
        (b'{"a": [], "b": []} x', "Extra data: line 1 column 20 (char 19)"),
        (b'{"a": [], "b": ["caf\xe9"]}', "utf-8: invalid continuation byte at byte 20"),
        (b'{"a": [], "b": ["\xc3', "utf-8: unexpected end of data at byte 17"),
        (b'{"a": [' + b"[" * 100_000, "not valid JSON (maximum recursion depth"),
        (b'{"x": ' + b'{"x":' * 100_000, "not valid JSON (maximum recursion depth"),
        (b'{"a": [' + b"1" * 5000 + b"]}", "not valid JSON (Exceeds the limit"),
        (b"[]", "not such a file: no list 'a' in it"),
        (b"5", "not such a file: no list 'a' in it"),
        (b'{"a": [], "c": [5]}', "not such a file: no list 'b' in it"),
        (b'{"a": [], "b": {"a": []}}', "not such a file: no list 'b' in it"),
        (b'{"a": [], "b": [], "a": [5]}', "expected the key 'a' once, found it twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    path: Path, data: bytes, words: str, chunk: int
) -> None:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        entries(path, chunk=chunk)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_every_truncation_is_noticed(path: Path) -> None:
    text = b'{"a": [{"id": 12, "s": "\\u00e9", "n": [1.5e3, -0]}, NaN], "c": {"d": true}, "b": []}'
    for length in range(len(text)):
        path.write_bytes(text[:length])
        with pytest.raises(UserError, match="not valid JSON"):
            entries(path)
    with pytest.raises(UserError, match=r"none\.json: can't be read"):
        entries(path.with_name("none.json"))


def test_real_annotations(shared: Path) -> None:
    keys = ("annotations", "categories", "images")
    for file in (shared / "data" / "coco-mini" / "annotations").glob("*.json"):
        content = json.loads(file.read_bytes())
        for chunk in (1000, 1 << 20):
            found: dict[str, list[Any]] = {key: [] for key in keys}
            for key, entry in read_lists(file, keys, what="COCO", chunk=chunk):
                found[key].append(entry)
            assert found == {key: content[key] for key in keys}


def test_memory_does_not_grow_with_the_file(path: Path) -> None:
    with path.open("w") as file:
        file.write('{"a": [0')
        for i in range(20_000):
            file.write(f', {{"id": {i}, "bbox": [1, 2, 3, 4], "x": "{"y" * 100}"}}')
        file.write('], "b": []}')
    assert path.stat().st_size > 2_900_000
    tracemalloc.start()
    count = sum(1 for _ in read_lists(path, KEYS, what="such a file", chunk=10_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_001
    assert peak < 300_000
