"""The body of a request: read within limits, and taken apart into pictures.

Three forms: the bytes of one picture, multipart/form-data (RFC 7578) with a picture per part, and
JSON with pictures in base64. All of it is in memory once, whatever the client claims or sends.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from email.message import Message
from typing import Any

from starlette.requests import ClientDisconnect, Request

from triscale.serve.batching import Encoded
from triscale.serve.settings import RefusedError, Settings, busy

_MAX_PART_HEADER = 4096


class Held:
    """The bytes of all bodies that are being held."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bytes = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncGenerator[bytearray]:
        """The whole body, counted until the block ends; RefusedError if it is too large."""
        limit = self._settings.max_bytes
        too_large = RefusedError(413, f"the body is too large; expected at most {limit:,} bytes")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RefusedError(415, "a compressed body (Content-Encoding) isn't understood")
        claimed = request.headers.get("content-length", "")
        if claimed.isdecimal() and int(claimed) > limit:
            raise too_large
        body = bytearray()
        try:
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise too_large
                if self._bytes + len(chunk) > self._settings.held_bytes:
                    raise busy("too many bytes are being sent to this server; try again later")
                self._bytes += len(chunk)
                body += chunk
            yield body
        except ClientDisconnect as error:
            raise RefusedError(400, "the connection was closed before the body's end") from error
        finally:
            self._bytes -= len(body)


def pictures_of(body: bytes | bytearray, content_type: str, *, most: int) -> list[Encoded]:
    """The pictures in a body, between 1 and `most`; RefusedError if it can't be taken apart."""
    header = _header("content-type", content_type or "application/octet-stream")
    kind = header.get_content_type()
    if kind == "multipart/form-data":
        found = _parts(bytes(body), _text(header.get_boundary()), most=most)
    elif kind == "application/json":
        found = _from_json(bytes(body), most=most)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        found = [Encoded(None, bytes(body))]
    else:
        raise RefusedError(
            415,
            f"Content-Type '{content_type[:100]}' isn't understood; expected image/..., "
            "application/octet-stream, multipart/form-data or application/json",
        )
    if not found:
        raise RefusedError(422, "there is no picture in the request")
    if len(found) > most:
        raise RefusedError(422, f"too many pictures; expected at most {most} in a request")
    return found


def _parts(body: bytes, boundary: str, *, most: int) -> list[Encoded]:
    """The files of a form (RFC 2046, section 5.1; RFC 7578)."""
    # RFC 2046 allows 1 to 70 characters.
    if not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise RefusedError(400, "multipart: the Content-Type has no boundary that can be used")
    sections = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("ascii"), most + 2)
    if len(sections) == most + 3:
        raise RefusedError(422, f"too many pictures; expected at most {most} in a request")
    if len(sections) < 2 or not sections[-1].startswith(b"--"):
        raise RefusedError(400, "multipart: the body doesn't end with its boundary")
    found: list[Encoded] = []
    for section in sections[1:-1]:
        head, separator, data = section.partition(b"\r\n\r\n")
        if not separator or len(head) > _MAX_PART_HEADER:
            raise RefusedError(400, "multipart: a part has no header that can be read")
        lines = [line.partition(":") for line in head.decode("utf-8", "replace").split("\r\n")]
        fields = {name.strip().lower(): value.strip() for name, _, value in lines}
        header = _header("content-disposition", fields.get("content-disposition", ""))
        name = _text(header.get_filename())
        if not name and not fields.get("content-type", "").startswith("image/"):
            raise RefusedError(
                400,
                "multipart: a part is no file; send pictures only, and options in the query "
                "(/detect?score=0.5)",
            )
        found.append(Encoded(name or None, data))
    return found


def _from_json(body: bytes, *, most: int) -> list[Encoded]:
    # Base64 has none of these characters, so there are few of them. Many would fill the memory with
    # empty lists.
    if sum(map(body.count, (b",", b"[", b"{"))) > 2 * most + 10:
        raise RefusedError(422, f"too many values in the JSON; expected at most {most} pictures")
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "the body isn't JSON that can be read") from error
    if not isinstance(value, dict) or set(value) != {"images"} or type(value["images"]) is not list:
        raise RefusedError(422, 'expected JSON like {"images": ["base64...", ...]}')
    return [_from_base64(text, number) for number, text in enumerate(value["images"], start=1)]


def _from_base64(text: Any, number: int) -> Encoded:
    if not isinstance(text, str):
        raise RefusedError(422, f"picture {number}: expected a text in base64")
    if text.startswith("data:"):  # a URL of RFC 2397, as browsers make them
        text = text.partition(",")[2]
    try:
        return Encoded(None, base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"picture {number}: not base64 that can be read") from error


def _header(name: str, value: str) -> Message:
    message = Message()
    message[name] = value[:_MAX_PART_HEADER]
    return message


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
