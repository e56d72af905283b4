"""Damage: what a broken disk, a broken tool or an attacker makes of a file. All of it is a function
of the generator that is passed in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from random import Random
from typing import Any

NUMBERS = (
    *("nan", "NaN", "inf", "-inf", "Infinity", "1e300", "-1e300", "1e308", "-1.7e308", "1e999"),
    *("0", "-0.0", "-1", "5e-324", "0.5", "1e15", "2147483648", "9223372036854775808"),
    *("18446744073709551616", "9" * 5000, "0x" + "f" * 5000, "1_0", "0,5", "٣", "", "true", "null"),
)
NAMES = (
    *("../../../../etc/passwd", "/etc/passwd", "/dev/zero", "..", ".", "", "C:\\x", "a\0b"),
    *("x" * 5000, "a/b", "日本", "\x1b[2J", "a\nb", "%s{0}", '"', "'", "<", "&", "\u2028", "\x85"),
    *("\\ud800", "\\u0000", "no", "~", "-1", "1", "[]", "{}", "null"),
)
SNIPPETS = {
    ".xml": (
        '<!DOCTYPE a [<!ENTITY b "c">]>',
        '<!DOCTYPE a SYSTEM "/etc/passwd">',
        "&b;&#0;&#x110000;",
        "<![CDATA[]]>",
        "<?xml version='1.0' encoding='unicode_escape'?>",
        "<a>" * 5000,
        "<object/>" * 50,
        "<object>",
        "</annotation>",
        "<bndbox><xmin>1</xmin></bndbox>",
    ),
    ".json": ("[" * 5000, '{"a":' * 5000, "{}", "[]", ",", '"id": 1,', "\\", "NaN", '"\\ud800"'),
    ".yaml": (
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "<<: {a: 1}\n",
        "names: !!python/object/apply:os.system [ls]\n",
        *("!!int x", "!!timestamp x", "!!bool x", "!!binary x", "!!float ''", "2001-99-99"),
        *(
            "[" * 5000,
            "- " * 5000,
            "? [a, b]\n",
            "---\n",
            "%YAML 9.9\n",
            "\t",
            "nc: 1000000000000\n",
        ),
    ),
    ".toml": (
        *("a = " + "[" * 5000, "a." * 3000 + "b = 1\n", "[[a]]\n", "[train]\n", "a = 0000-00-00\n"),
        *("x = 1979-05-27T07:32:00+99:99\n", '"' * 3, "\n[a.b.c.d]\n", "x = {a = {b = 1}}\n"),
    ),
    ".txt": ("0 " * 5000, "0 .5 .5 .1 .1\n", "0 1e308 1e308 1e308 1e308\n", "x -1\n", "../" * 50),
}
ENCODINGS = ("utf-16", "utf-8-sig", "utf-32", "utf-7", "cp037")


def damaged(data: bytes, suffix: str, rng: Random) -> bytes:
    """`data` of a file with this suffix, with one to three things done to it."""
    kinds = [_bytes, _span]
    if suffix in SNIPPETS:
        kinds += [_token, _token, _line, _snippet, _encoding]
    if suffix == ".json":
        kinds += [_tree, _tree, _tree]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(kinds)(data, suffix, rng)
    return data


def replaced(path: Path, rng: Random) -> None:
    """Something else than a file in the place of `path`."""
    path.unlink()
    kind = rng.choice(("none", "empty", "folder", "pipe", "loop", "device", "nowhere", "outside"))
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "none":
        targets = {"loop": path, "device": "/dev/zero", "nowhere": "/no/where"}
        path.symlink_to(targets.get(kind, "/etc/passwd"))


def _bytes(data: bytes, suffix: str, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            place = rng.randrange(len(changed))
            changed[place] = rng.choice((changed[place] ^ 1 << rng.randrange(8), 0, 255))
    return bytes(changed)


def _span(data: bytes, suffix: str, rng: Random) -> bytes:
    start, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    choices = (
        data[:start],
        data[:start] + data[end:],
        data[:end] + data[start:],
        data[:start] + rng.randbytes(rng.randint(1, 20)) + data[start:],
    )
    return rng.choice(choices)


def _token(data: bytes, suffix: str, rng: Random) -> bytes:
    """Another number or name, or another one of the same file."""
    number = rng.random() < 0.6
    pattern = rb"-?\d+(\.\d*)?(e[+-]?\d+)?|-?\.\d+" if number else rb"[A-Za-z_][\w./-]*"
    found = list(re.finditer(pattern, data))
    if not found:
        return data
    place = rng.choice(found)
    new = rng.choice(NUMBERS if number else NAMES).encode()
    if rng.random() < 0.2:
        new = rng.choice(found)[0]
    return data[: place.start()] + new + data[place.end() :]


def _line(data: bytes, suffix: str, rng: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        place = rng.randrange(len(lines))
        lines[place : place + 1] = rng.choice(([], [lines[place]] * 2, [rng.choice(lines)]))
    return b"".join(lines)


def _snippet(data: bytes, suffix: str, rng: Random) -> bytes:
    places = [0, len(data), *(match.end() for match in re.finditer(rb"[>\n:=,\[{]", data))]
    place = rng.choice(places)
    return data[:place] + rng.choice(SNIPPETS[suffix]).encode() + data[place:]


def _encoding(data: bytes, suffix: str, rng: Random) -> bytes:
    return data.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")


def _tree(data: bytes, suffix: str, rng: Random) -> bytes:
    """A value of a JSON file removed, doubled or replaced by one of another kind."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    parents = [node for node in _nodes(tree) if isinstance(node, dict | list) and node]
    if not parents:
        return data
    parent = rng.choice(parents)
    key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    others: list[Any] = [None, True, -1, 2**63, 1e300, 1e308, -1e308, float("nan"), float("inf")]
    others += [0, 5e-324, "", [], {}, [[1]], rng.choice(NAMES), "\ud800", int("9" * 4000), 0.5]
    if rng.random() < 0.2:
        del parent[key]
    elif isinstance(parent, list) and rng.random() < 0.3:
        parent.append(parent[key])
    else:
        parent[key] = rng.choice(others)
    return json.dumps(tree).encode()


def _nodes(tree: Any) -> list[Any]:
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tree, *(node for child in inside for node in _nodes(child))]
