"""Bodies taken apart; the forms were written by curl 7.88 and, in the page's test, by Chromium."""

from __future__ import annotations

import base64
import json

import pytest

from triscale.serve.bodies import pictures_of
from triscale.serve.settings import RefusedError

# What `curl -F image=@a.bin -F 'image=@b.bin;filename="b \"c\".png"' -F x=@e.bin` sent; a.bin has
# line ends and the dashes of the boundary in it, e.bin is empty.
BOUNDARY = "------------------------68823e2400ca8516"
A = b"\x00\r\n--\r\n--------------------------d74496d6\r\n"
CURL = (
    f"--{BOUNDARY}\r\n".encode()
    + b'Content-Disposition: form-data; name="image"; filename="a.bin"\r\n'
    + b"Content-Type: application/octet-stream\r\n\r\n"
    + A
    + f"\r\n--{BOUNDARY}\r\n".encode()
    + b'Content-Disposition: form-data; name="image"; filename="b %22c%22.png"\r\n'
    + b"Content-Type: image/png\r\n\r\nBB"
    + f"\r\n--{BOUNDARY}\r\n".encode()
    + b'Content-Disposition: form-data; name="x"; filename="e.bin"\r\n'
    + b"Content-Type: application/octet-stream\r\n\r\n"
    + f"\r\n--{BOUNDARY}--\r\n".encode()
)
FORM = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"


def in_json(*values: object) -> bytes:
    return json.dumps({"images": values}).encode()


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"x", "", [(None, b"x")]),
        (b"x", "image/jpeg", [(None, b"x")]),
        (b"x", "Application/Octet-Stream; a=b", [(None, b"x")]),
        (CURL, FORM, [("a.bin", A), ("b %22c%22.png", b"BB"), ("e.bin", b"")]),
        (
            b"before\r\n" + CURL + b"after",
            FORM,
            [("a.bin", A), ("b %22c%22.png", b"BB"), ("e.bin", b"")],
        ),
        (in_json("YQ=="), JSON, [(None, b"a")]),
        (in_json("data:image/png;base64,YQ==", "Y\nmM="), JSON, [(None, b"a"), (None, b"bc")]),
    ],
)
def test_pictures(body: bytes, kind: str, expected: list[tuple[str | None, bytes]]) -> None:
    assert [tuple(found) for found in pictures_of(body, kind, most=3)] == expected


@pytest.mark.parametrize(
    ("body", "kind", "status", "text"),
    [
        (b"", "multipart/form-data", 400, "no boundary"),
        (b"", "multipart/form-data; boundary=" + "x" * 71, 400, "no boundary"),
        (b"", FORM, 400, "doesn't end with its boundary"),
        (CURL[:-10], FORM, 400, "doesn't end with its boundary"),
        (f"--{BOUNDARY}--".encode(), FORM, 422, "no picture"),
        (f"--{BOUNDARY}\r\nx\r\n--{BOUNDARY}--".encode(), FORM, 400, "no header"),
        (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="score"\r\n\r\n1\r\n'
            f"--{BOUNDARY}--".encode(),
            FORM,
            400,
            "no file",
        ),
        (CURL.replace(b"x", b"x" * 5000, 1), FORM, 400, "no header"),
        (f"--{BOUNDARY}\r\n".encode() * 100, FORM, 422, "too many pictures"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "isn't understood"),
        (b"x", "text/plain", 415, "isn't understood"),
        (b"", JSON, 400, "isn't JSON"),
        (b"{}", JSON, 422, "expected JSON like"),
        (b'{"images": {}}', JSON, 422, "expected JSON like"),
        (b'{"images": [], "x": 1}', JSON, 422, "expected JSON like"),
        (b'{"images": []}', JSON, 422, "no picture"),
        (in_json(1), JSON, 422, "picture 1: expected a text"),
        (in_json("YQ==", "YQ"), JSON, 400, "picture 2: not base64"),
        (in_json("\ud800"), JSON, 400, "not base64"),
        (in_json(*["YQ=="] * 4), JSON, 422, "too many pictures"),
        (b'{"images": [' + b"[" * 100_000, JSON, 422, "too many values"),
        (b"[" * 15, JSON, 400, "isn't JSON"),
        (b"9" * 5000, JSON, 400, "isn't JSON"),  # more digits than Python takes for a number
        (b"\xff\xfe", JSON, 400, "isn't JSON"),
    ],
)
def test_what_is_refused(body: bytes, kind: str, status: int, text: str) -> None:
    with pytest.raises(RefusedError, match=text) as refused:
        pictures_of(body, kind, most=3)
    assert refused.value.status == status


def test_base64_is_not_too_many_values() -> None:
    data = base64.b64encode(bytes(range(256)) * 5000).decode()
    assert len(pictures_of(in_json(data, data, data), JSON, most=3)) == 3
