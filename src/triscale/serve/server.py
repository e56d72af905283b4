"""The processes behind the port: start, timeouts of connections, the end without losing a request.

On SIGTERM or Ctrl-C the server refuses what is new, finishes what it has within DRAIN seconds, and
ends. Several processes accept from one socket; the first one only watches over them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.sharedctypes import RawArray
from types import FrameType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from triscale.engines.machine import cores
from triscale.errors import UserError
from triscale.serve.app import Service, say
from triscale.serve.metrics import WIDTH, Metrics
from triscale.serve.settings import Settings

if TYPE_CHECKING:
    from triscale.predict import Detector

DRAIN = 8.0  # seconds; Docker kills after 10
_HEADER = 10.0  # seconds in which a request's header must come
_IDLE = 5  # seconds between two requests of a connection
_ECHO = 1.0  # seconds in which a second signal is taken for the first: Ctrl-C reaches all processes
_BACKLOG = 512


def serve(settings: Settings) -> None:
    """Answer requests until a signal ends it; UserError if it can't begin."""
    with _listening(settings) as listener:
        host, port = listener.getsockname()[:2]
        at = f"[{host}]" if ":" in host else host
        say(f"http://{at}:{port} serves {settings.weights}; Ctrl-C ends it")
        if settings.token is None and not ipaddress.ip_address(host.split("%")[0]).is_loopback:
            say(f"warning: who can reach {at}:{port} can use it; see --token-file")
        cells = RawArray("d", settings.workers * WIDTH)
        if settings.workers == 1:
            run_server(Service(settings, Metrics(cells), load=lambda: _load(settings)), listener)
        else:
            _watch_over(_Workers(settings, listener, cells))


def run_server(
    service: Service, listener: socket.socket, *, tell: Callable[[], None] | None = None
) -> None:
    """Serve from this process, which tells its parent when it is ready, and ends with it, if there
    is a `tell`."""
    timeout = min(_HEADER, service.settings.timeout)
    config = uvicorn.Config(
        service.app,
        http=_protocol(timeout),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=1,
    )
    # Filters belong to the process, and threads that read pictures change them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = _Server(config, service, tell=tell)
        server.run(sockets=[listener])
    say("ended")
    if server.failure:
        raise server.failure


class _Server(uvicorn.Server):
    """uvicorn's, which closes the door only when those inside are served."""

    def __init__(
        self, config: uvicorn.Config, service: Service, *, tell: Callable[[], None] | None
    ) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self._service = service
        self._tell: Callable[[], None] | None = tell or (lambda: say("ready"))
        self._parent = os.getppid() if tell else None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        since = self._service.draining_since
        if since is None:
            self._service.drain()
        elif time.monotonic() - since > _ECHO:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        service = self._service
        if self._tell and service.batcher.detector:
            self._tell()
            self._tell = None
        if service.task and service.task.done():
            self.failure = service.task.exception()
            return True
        if self._parent not in (None, os.getppid()):  # it is gone
            service.drain()
        if service.draining_since is not None:
            seconds = time.monotonic() - service.draining_since
            if seconds > min(DRAIN, service.settings.timeout) or not service.in_flight:
                return True
        return await super().on_tick(counter)


def _protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, with an end to waiting for a request's header or an answer's reader."""

    class Guarded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # so is uvicorn's own
            super().connection_made(transport)
            self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer:
                self._timer.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._expect()

        def send_400_response(self, msg: str) -> None:
            text = json.dumps({"error": "this isn't a request in HTTP that can be read"}).encode()
            head = [("Content-Type", "application/json"), ("Connection", "close")]
            head.append(("Content-Length", str(len(text))))
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                for event in (
                    h11.Response(status_code=400, headers=head),
                    h11.Data(data=text),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _expect(self) -> None:
            if self._timer:
                self._timer.cancel()
            self._timer = self.loop.call_later(seconds, self._give_up)

        def _give_up(self) -> None:
            if not self.cycle or self.cycle.response_complete:
                self.transport.abort()

    return Guarded


def _load(settings: Settings) -> Detector:
    from triscale.predict import Detector

    return Detector(settings.weights, device=settings.device, precision=settings.precision)


@contextmanager
def _listening(settings: Settings) -> Generator[socket.socket]:
    """The socket; UserError if there can't be one."""
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a name of a host"
        raise UserError(f"{settings.host}:{settings.port}: can't listen ({reason})") from error
    with listener:
        yield listener


@dataclass
class _Workers:
    """What every worker process is given."""

    settings: Settings
    listener: socket.socket
    cells: Any

    def start(self, context: SpawnContext, row: int) -> _Worker:
        ours, theirs = context.Pipe(duplex=False)
        arguments = (self.settings, self.listener, self.cells, row, theirs)
        process = context.Process(target=_work, args=arguments)
        process.start()
        theirs.close()
        return _Worker(process, ours)


@dataclass
class _Worker:
    process: SpawnProcess
    news: Connection  # nothing but an error, or "ready"
    ready: bool = False


def _watch_over(workers: _Workers) -> None:
    """Keep the workers running until a signal; UserError if one of them can't begin."""
    context = multiprocessing.get_context("spawn")
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    running = [workers.start(context, row) for row in range(workers.settings.workers)]
    try:
        while not stopping:
            wait([worker.process.sentinel for worker in running], timeout=0.2)
            for row, worker in enumerate(running):
                code = worker.process.exitcode  # before its last words are heard
                _hear(worker)
                if code is None or stopping:
                    continue
                if not worker.ready:
                    raise UserError(f"a worker ended at its start ({code})")
                say(f"a worker ended ({code}); another one takes its place")
                running[row] = workers.start(context, row)
    finally:
        _end(running)
        for number, handler in before.items():
            signal.signal(number, handler)


def _hear(worker: _Worker) -> None:
    if worker.ready or not worker.news.poll():
        return
    try:
        text = worker.news.recv_bytes().decode()
    except EOFError:
        return
    if text != "ready":
        raise UserError(text)
    worker.ready = True
    say(f"worker {worker.process.pid} is ready")


def _end(running: list[_Worker]) -> None:
    """Ask the workers to finish, and end those that don't."""
    for worker in running:
        worker.process.terminate()
    deadline = time.monotonic() + DRAIN + 3
    for worker in running:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.process.kill()
        worker.process.join()


def _work(
    settings: Settings, listener: socket.socket, cells: Any, row: int, news: Connection
) -> None:
    """A worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until uvicorn listens to it; the parent hears it
    # its share of the cores, before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // settings.workers)))
    try:
        # before it accepts anything: until then what comes is for the workers that are ready
        detector = _load(settings)
        service = Service(settings, Metrics(cells, row=row), load=lambda: detector)
        run_server(service, listener, tell=lambda: news.send_bytes(b"ready"))
    except UserError as error:
        news.send_bytes(str(error).encode())
        sys.exit(2)
