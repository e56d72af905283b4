"""What the server answers: routes, errors as JSON, one line of log and one count per request."""

from __future__ import annotations

import asyncio
import hmac
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triscale.detections import label_numbers
from triscale.draw import colour_of
from triscale.errors import UserError
from triscale.serve.batching import Batcher, Found
from triscale.serve.bodies import Held, pictures_of
from triscale.serve.metrics import CONTENT_TYPE, Metrics
from triscale.serve.openapi import describe, document_page
from triscale.serve.settings import RefusedError, Settings, busy

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# That page has its style and script inside, and its own policy in its head.
_DOCUMENT_POLICY = "frame-ancestors 'none'"
_SAFE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_OPEN_WHILE_DRAINING = ("/healthz", "/metrics")


class Service:
    """The state of a server's process, and the application (`app`) that shows it."""

    def __init__(self, settings: Settings, metrics: Metrics, *, load: Callable[[], Any]) -> None:
        self.settings = settings
        self.metrics = metrics
        self.batcher = Batcher(load, settings, metrics)
        self.held = Held(settings)
        self.draining_since: float | None = None
        self.in_flight = 0  # requests
        self.task: asyncio.Task[None] | None = None  # of the batcher; it ends only if it fails
        self.app: ASGIApp = _watched(self, _routes(self))

    def drain(self) -> None:
        """From now on refuse what is new."""
        if self.draining_since is None:
            self.draining_since = time.monotonic()

    @property
    def draining(self) -> bool:
        """Whether the server is about to end."""
        return self.draining_since is not None


def _routes(service: Service) -> Starlette:
    """The application without its surroundings."""
    settings = service.settings
    own = files("triscale")
    description = describe(settings)
    style = own.joinpath("page.css").read_bytes() + own.joinpath("serve/page.css").read_bytes()
    html, script = (own.joinpath(f"serve/page.{end}").read_bytes() for end in ("html", "js"))
    document = document_page(description).encode()

    async def detect(request: Request) -> Response:
        _authorise(request, settings)
        service.batcher.require_room(1)  # before a body is read for nothing
        score, labels = _options(request, service)
        began = time.perf_counter()
        late = RefusedError(408, f"the body didn't come within {settings.timeout:g} seconds")
        try:
            async with asyncio.timeout(settings.timeout), service.held.body(request) as body:
                late = RefusedError(504, f"no result within {settings.timeout:g} seconds")
                kind = request.headers.get("content-type", "")
                pictures = await service.batcher.in_thread(
                    lambda: pictures_of(body, kind, most=settings.queue)
                )
                results = await service.batcher.detect(pictures)
        except TimeoutError:
            raise late from None
        images = [
            {"name": picture.name, **_shown(found, score, labels=labels)}
            for picture, found in zip(pictures, results, strict=True)
        ]
        seconds = round(time.perf_counter() - began, 6)
        return JSONResponse({"images": images, "seconds": seconds})

    async def model(request: Request) -> Response:
        _authorise(request, settings)
        detector = service.batcher.detector
        if detector is None:
            raise busy("the network is being loaded; try again soon")
        name = Path(settings.weights).absolute().name
        return JSONResponse(
            {
                "name": name,
                "classes": detector.classes,
                "colours": [
                    "#{:02x}{:02x}{:02x}".format(*colour_of(k))
                    for k in range(len(detector.classes))
                ],
                "score_threshold": settings.score,
            }
        )

    async def healthz(_: Request) -> Response:
        if service.batcher.detector is None:
            raise busy("the network is being loaded")
        if service.draining:
            raise busy("the server is shutting down")
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        _authorise(request, settings)
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    def fixed(path: str, content: bytes, kind: str, *, policy: str = _POLICY) -> Route:
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": policy}

        async def answer(_: Request) -> Response:
            return Response(content, media_type=kind, headers=headers)

        return Route(path, answer)

    async def openapi(_: Request) -> Response:
        return JSONResponse(description)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        service.task = asyncio.create_task(service.batcher.run())
        try:
            yield
        finally:
            service.task.cancel()

    app = Starlette(
        routes=[
            Route("/detect", detect, methods=["POST"]),
            Route("/model", model),
            Route("/healthz", healthz),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            fixed("/", html, "text/html"),
            fixed("/page.css", style, "text/css"),
            fixed("/page.js", script, "text/javascript"),
            fixed("/docs", document, "text/html", policy=_DOCUMENT_POLICY),
        ],
        exception_handlers={
            RefusedError: _refused,
            UserError: _user_error,
            HTTPException: _http_error,
            Exception: _bug,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # an answer of its own kind, without JSON
    return app


def _watched(service: Service, app: ASGIApp) -> ASGIApp:
    """The application with what is done for every request."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SAFE]
            await send(message)

        path = scope["path"]
        service.in_flight += 1
        try:
            if service.draining and path not in _OPEN_WHILE_DRAINING:
                leaving = error_response(busy("the server is shutting down"))
                await leaving(scope, receive, noted)
            else:
                await app(scope, receive, noted)
        except asyncio.CancelledError:
            if not service.draining or status:
                raise
            leaving = error_response(busy("the server is shutting down"))
            await leaving(scope, receive, noted)
        finally:
            service.in_flight -= 1
            seconds = time.perf_counter() - began
            service.metrics.request(path, status=status or 500, seconds=seconds)
            host = (scope["client"] or ("-",))[0]
            target = scope["raw_path"].decode("ascii")[:200]
            say(f"{host} {scope['method'][:20]} {target} {status} {seconds * 1000:.0f} ms")

    return watched


def say(text: str) -> None:
    """A line of log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)


def error_response(error: RefusedError) -> JSONResponse:
    """What its sender gets."""
    return JSONResponse({"error": str(error)}, error.status, error.headers)


def _authorise(request: Request, settings: Settings) -> None:
    if settings.token is None:
        return
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(token.strip().encode(), settings.token.encode())
    if kind.lower() != "bearer" or not same:
        raise RefusedError(
            401,
            "expected the header 'Authorization: Bearer TOKEN' with this server's token",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _options(request: Request, service: Service) -> tuple[float, list[int] | None]:
    """The least score and the class numbers that the query asks for."""
    unknown = set(request.query_params) - {"score", "labels"}
    if unknown:
        raise RefusedError(422, f"unknown option '{min(unknown)[:50]}'; known are score, labels")
    text = request.query_params.get("score", str(service.settings.score))
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise RefusedError(422, f"score: expected a number from 0 to 1, got '{text[:50]}'")
    names = [n for value in request.query_params.getlist("labels") for n in value.split(",") if n]
    detector = service.batcher.detector
    if not names or detector is None:
        return score, None
    return score, label_numbers([name[:100] for name in names], detector.classes)


def _shown(found: Found, score: float, *, labels: list[int] | None) -> dict[str, Any]:
    height, width = found.size
    kept = found.detections.filter(score, labels=labels)
    return {"width": width, "height": height, "detections": kept.to_dicts()}


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error_response(error)


def _user_error(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {
        404: "there is nothing at this path; /docs says what there is",
        405: f"this path doesn't take {request.method[:20]}",
    }.get(error.status_code, error.detail)
    return JSONResponse({"error": text}, error.status_code, error.headers)


def _bug(_: Request, __: Exception) -> Response:
    """Its traceback is in the server's log."""
    return JSONResponse({"error": "a mistake in the server; its log says more"}, 500)
