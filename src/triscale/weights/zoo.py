"""GluonCV's published weights, fetched when the user asks for them.

A model is published as a zip with one `.params` file, whose name carries the first eight digits of
its SHA-1. That hash decides in the end: whatever a server, a proxy or an earlier broken download
left, the file is the published one or it is refused. Source of the names, the hashes and the
address: `gluoncv/model_zoo/model_store.py`. Resuming follows RFC 9110, sections 13 and 14.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from triscale import __version__
from triscale.config import nearest
from triscale.errors import UserError
from triscale.files import ZIP_ERRORS, cache_folder, locked, replace_atomically

if TYPE_CHECKING:
    from triscale.log import Narrator

REPOSITORY = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/"
# name -> SHA-1 of the .params file
ZOO: Mapping[str, str] = {
    "yolo3_darknet53_voc": "f5ece5ce1422eeca3ce2908004e469ffdf91fd41",
    "yolo3_darknet53_coco": "09767802230b45af1c27697a2dad6d1ebaacc1e2",
    "yolo3_mobilenet1.0_voc": "3b47835ac3dd80f29576633949aa58aee3094353",
    "yolo3_mobilenet1.0_coco": "66dbbae67be8f1e3cd3c995ce626a2bdc89769c6",
    "darknet53": "2189ea49720a116dead245b9b252301cffa18d28",
    "mobilenet1.0": "efbb2ca3881998d5a8c5cb6c457a28c1e085fed5",
    "mobilenet0.75": "84c801e27b1ac5040b6e945c0d1f8d49e9a59f3d",
    "mobilenet0.5": "0130d2aa2f7e3a63db35579b243e25f512172371",
    "mobilenet0.25": "f0046a3da4e150b85da58ea31913dbb86e7540d1",
}
MAX_BYTES = 1 << 30  # of the zip and of what is in it; the largest published file has 0.25e9
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3
PAUSE = 1.0  # seconds between two attempts
CHUNK = 1 << 16
MEGABYTE = 1e6  # unit of the progress bar


class _BrokenError(Exception):
    """A transfer that failed on the way; another attempt may complete it."""


def download(
    name: str, *, narrator: Narrator, mirror: str | None = None, folder: Path | None = None
) -> Path:
    """The published `.params` file of a model, in `folder` (default: `cache_folder()`).

    Without network access if it is there already. A download that broke off goes on where it
    stopped, in this call or the next. `mirror` is the address of a copy of GluonCV's repository.
    Raises UserError when the file can't be had or isn't the published one.
    """
    if name not in ZOO:
        raise UserError(f"no published weights are called '{name}'{nearest(name, ZOO)}")
    stem = stem_of(name)
    url = _url(REPOSITORY if mirror is None else mirror, stem)
    folder = folder or cache_folder()
    target, part = folder / f"{stem}.params", folder / f"{stem}.zip.part"
    try:
        if target.is_file():
            if (found := _sha1(target)) == ZOO[name]:
                return target
            narrator.say(f"{target}: not the published file (sha1 {found}), downloading it again")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            _download(url, target, part=part, sha1=ZOO[name], narrator=narrator)
    except OSError as error:  # of the disk: what goes wrong on the network is a UserError by now
        raise UserError(
            f"{error.filename or folder}: can't be used for downloads ({error.strerror or error})"
        ) from error
    return target


def stem_of(name: str) -> str:
    """What the files of a published model are called, without their ending."""
    return f"{name}-{ZOO[name][:8]}"


def cached(name: str) -> Path | None:
    """The file that `triscale download` left for a name; None if there is none."""
    path = cache_folder() / f"{stem_of(name)}.safetensors" if name in ZOO else None
    return path if path and path.is_file() else None


def _url(mirror: str, stem: str) -> str:
    try:
        parts = urlsplit(mirror)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = parts.username is not None
    except ValueError:
        usable = secret = False
    if secret:
        raise UserError("mirror: expected an address without a user's name and password")
    if not usable:
        raise UserError(f"mirror: expected an address with http:// or https://, got '{mirror}'")
    return f"{mirror.rstrip('/')}/gluon/models/{stem}.zip"


def _sha1(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def _download(url: str, target: Path, *, part: Path, sha1: str, narrator: Narrator) -> None:
    """Fetch the zip into `part` and its member into `target`."""
    for last in (False, True):
        resumed = _fetch(url, part, narrator=narrator)
        try:
            _unpack(url, part, target=target, sha1=sha1)
        except UserError as error:
            part.unlink()  # the next try must start afresh
            if last or not resumed:
                raise
            # The pieces may stem from two versions of the file, or from two mirrors.
            narrator.say(f"{error}; it was joined from pieces, so once more from the beginning")
        else:
            part.unlink()
            return


def _fetch(url: str, part: Path, *, narrator: Narrator) -> bool:
    """Complete `part`; whether it is joined from pieces, which may not belong together."""
    narrator.say(f"downloading {url}")
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            narrator.say(f"{url}: {reason}; trying again")
            time.sleep(PAUSE)
        have = part.stat().st_size if part.exists() else 0
        try:
            response = _open(url, start=have)
            if response is None:
                return True
            with response:
                _receive(url, response, part=part, have=have, narrator=narrator)
                return response.status == 206
        except _BrokenError as error:
            reason = str(error)
        finally:
            narrator.end()
    raise _failure(url, f"{reason}, at the last of {ATTEMPTS} attempts (what came is kept)")


def _open(url: str, *, start: int) -> HTTPResponse | None:
    """The server's answer from byte `start` on; None if it has no bytes there.

    None means that we have the whole file or the wrong one, which the hash will tell. Raises
    _BrokenError where another attempt may help, else UserError.
    """
    headers = {"User-Agent": f"triscale/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    opener = request.OpenerDirector()  # not build_opener: that one also opens ftp: and file:
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.UnknownHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    try:
        asked = request.Request(url, headers=headers)
        return cast("HTTPResponse", opener.open(asked, timeout=TIMEOUT))
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return None
        if error.code >= 500:
            raise _BrokenError(_reason(error)) from error
        raise _failure(url, _reason(error)) from error
    except (URLError, InvalidURL, ValueError) as error:  # no such name, server or certificate
        raise _failure(url, _reason(error)) from error
    except (OSError, HTTPException) as error:
        raise _BrokenError(_reason(error)) from error


def _receive(
    url: str, response: HTTPResponse, *, part: Path, have: int, narrator: Narrator
) -> None:
    """Append the answer to the `have` bytes of `part`, or replace them if it is the whole file."""
    total = response.length
    if response.status == 206:
        told = response.headers.get("Content-Range", "")
        span = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", told)
        if not span or int(span[1]) != have:
            part.unlink(missing_ok=True)
            raise _BrokenError(f"expected the bytes from {have}, found '{_printable(told)}'")
        total = int(span[2]) + 1 if span[3] == "*" else int(span[3])
    else:
        have = 0
    limit = MAX_BYTES if total is None else total
    if limit > MAX_BYTES:
        part.unlink(missing_ok=True)
        raise _failure(url, f"expected at most {MAX_BYTES} bytes, found {limit}")
    if total is not None:
        size = math.ceil(total / MEGABYTE)
        narrator.begin(f"{part.stem} (MB)", size, done=round(have / MEGABYTE))
    with part.open("ab" if have else "wb") as file:
        while have != total:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, HTTPException) as error:
                raise _BrokenError(_ended(have, total) + f" ({_reason(error)})") from error
            if not chunk:
                break
            have += len(chunk)
            if have > limit:
                part.unlink()
                raise _failure(url, f"expected at most {limit} bytes, found more")
            file.write(chunk)
            narrator.advance(amount=len(chunk) / MEGABYTE)
    if total is not None and have < total:
        raise _BrokenError(_ended(have, total))


def _ended(have: int, total: int | None) -> str:
    return f"ended after {have} bytes" + (f" of {total}" if total is not None else "")


def _unpack(url: str, part: Path, *, target: Path, sha1: str) -> None:
    """Put the member called like `target` there if it has the right hash, else UserError."""

    def write(temporary: Path) -> None:
        digest = hashlib.sha1()
        with temporary.open("wb") as file:
            for chunk in _read_member(url, part, name=target.name):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha1:
            raise _failure(
                url, f"expected {target.name} with sha1 {sha1}, found {digest.hexdigest()}"
            )

    replace_atomically(target, write)


def _read_member(url: str, part: Path, *, name: str) -> Iterator[bytes]:
    """The bytes of member `name`; no other member is looked at, no path in the zip is used."""
    try:
        with ZipFile(part) as archive:
            if name not in (names := archive.namelist()):
                found = ", ".join(_printable(other) for other in names[:3]) or "nothing"
                raise _failure(url, f"expected a zip with {name}, found {found}")
            member = archive.getinfo(name)
            if member.file_size > MAX_BYTES:
                raise _failure(
                    url, f"{name}: expected at most {MAX_BYTES} bytes, found {member.file_size}"
                )
            if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise _failure(url, f"{name}: unknown compression {member.compress_type}")
            with archive.open(member) as file:  # hands out no more than the declared size
                while chunk := file.read(CHUNK):
                    yield chunk
    except UserError:
        raise
    except ZIP_ERRORS as error:
        raise _failure(url, f"expected a whole zip, found none: {_reason(error)}") from error


def _failure(url: str, reason: str) -> UserError:
    name = f"{PurePosixPath(url).stem}.params"
    return UserError(
        f"{url}: {reason}; try again later, name a copy with --mirror URL, or use the file {name} "
        "that GluonCV left in ~/.mxnet/models with triscale convert"
    )


def _reason(error: Exception) -> str:
    """The cause in a few words, on one line."""
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT:g} s"
    return _printable(str(getattr(error, "strerror", None) or error)) or type(error).__name__


def _printable(text: str) -> str:
    """What a server sent, fit for a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:200]).strip()
