"""Pictures of many requests through the network together, within bounds.

Each picture goes its own way: its header is read, it waits until there is room for its pixels, it
is decoded in a thread, joins a batch, and one more thread computes that. A batch waits `window`
milliseconds, and only while it knows of pictures on their way: who is alone waits for nobody. The
memory is bounded by the pixels that are held at a time, the work by the pictures that are let in.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from triscale.data.pictures import decode_picture, encoded_size
from triscale.engines.machine import cores
from triscale.errors import ran_out_of_memory
from triscale.serve.metrics import Metrics
from triscale.serve.settings import RefusedError, Settings, busy

if TYPE_CHECKING:
    from triscale.detections import Detections
    from triscale.predict import Detector

T = TypeVar("T")


class Encoded(NamedTuple):
    """A picture as it came."""

    name: str | None  # as its sender calls it
    data: bytes


class Found(NamedTuple):
    """What is in a picture."""

    size: tuple[int, int]  # (height, width)
    detections: Detections


@dataclass
class _Item:
    """A decoded picture on its way through the network."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    wanted: Callable[[], bool]  # whether its sender still waits
    done: asyncio.Future[Detections | None]


@dataclass
class Batcher:
    """The queue, and the network behind it; `run` works it off. Belongs to one event loop."""

    load: Callable[[], Detector]
    settings: Settings
    metrics: Metrics
    detector: Detector | None = None  # None: isn't loaded yet
    waiting: int = 0  # pictures that were let in and aren't done
    _ready: asyncio.Queue[_Item] = field(default_factory=asyncio.Queue[_Item])
    _room: _Room = field(init=False)

    def __post_init__(self) -> None:
        self._room = _Room(2 * self.settings.max_pixels)
        self._decoders = ThreadPoolExecutor(min(4, cores()), "decode")
        self._network = ThreadPoolExecutor(1, "network")

    async def run(self) -> None:
        """Load the network, then compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        self.detector = await loop.run_in_executor(self._network, self.load)
        self.metrics.ready()
        try:
            while True:
                items = [item for item in await self._gather() if _expected(item)]
                if items:
                    await loop.run_in_executor(self._network, self._compute, items, loop)
        finally:
            self._decoders.shutdown(wait=False, cancel_futures=True)
            self._network.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What `work` gives, done beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    def require_room(self, number: int) -> None:
        """RefusedError if so many pictures can't be let in now."""
        if self.detector is None:
            raise busy("the network is being loaded; try again soon")
        if self.waiting + number > self.settings.queue:
            raise busy(f"the queue is full ({self.waiting} pictures); try again later")

    async def detect(self, pictures: Sequence[Encoded]) -> list[Found]:
        """What is in each; RefusedError if there is no room, UserError for the first that can't be
        read. If it is cancelled, what has begun goes on to its end, and the rest is dropped."""
        self.require_room(len(pictures))
        wanted = True
        self._count(len(pictures))
        results = asyncio.gather(
            *(
                self._one(picture, number, lambda: wanted)
                for number, picture in enumerate(pictures, start=1)
            ),
            return_exceptions=True,
        )
        try:
            done = await asyncio.shield(results)
        except asyncio.CancelledError:
            wanted = False
            raise
        for result in done:
            if isinstance(result, BaseException):
                raise result
        return [result for result in done if isinstance(result, Found)]

    async def _one(self, picture: Encoded, number: int, wanted: Callable[[], bool]) -> Found | None:
        name = f"picture {number}"
        try:
            height, width = await self.in_thread(lambda: encoded_size(picture.data, name))
            if height * width > self.settings.max_pixels:
                raise RefusedError(
                    413,
                    f"{name}: {width}x{height} pixels; expected at most "
                    f"{self.settings.max_pixels:,}",
                )
            async with self._room.taken(height * width):
                if not wanted():
                    return None
                pixels = await self.in_thread(lambda: decode_picture(picture.data, name))
                item = _Item(pixels, wanted, asyncio.get_running_loop().create_future())
                self._ready.put_nowait(item)
                detections = await item.done
                return None if detections is None else Found((height, width), detections)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.waiting += change
        self.metrics.queue(change)

    async def _gather(self) -> list[_Item]:
        """The pictures of the next batch, at least one."""
        items = [await self._ready.get()]
        try:
            async with asyncio.timeout(self.settings.window / 1000):
                while len(items) < min(self.settings.batch_size, self.waiting):
                    items.append(await self._ready.get())
        except TimeoutError:
            pass
        return items

    def _compute(self, items: Sequence[_Item], loop: asyncio.AbstractEventLoop) -> None:
        """Fulfil what is expected; one picture that can't be computed doesn't harm the others."""
        assert self.detector is not None
        began = time.perf_counter()
        try:
            results = self.detector.batch([item.pixels for item in items])
        except Exception as error:
            if len(items) > 1:
                for item in items:
                    self._compute([item], loop)
                return
            if ran_out_of_memory(error):
                error = busy("out of memory; try again later, or with a smaller picture")
            else:
                traceback.print_exc(file=sys.stderr)
            loop.call_soon_threadsafe(_set, items[0].done, error)
            return
        self.metrics.batch(len(items), seconds=time.perf_counter() - began)
        for item, found in zip(items, results, strict=True):
            loop.call_soon_threadsafe(_set, item.done, found)


class _Room:
    """So many units that can be taken at a time; who asks first gets them first."""

    def __init__(self, units: int) -> None:
        self._left = units
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def taken(self, units: int) -> AsyncGenerator[None]:
        async with self._turn:
            while self._left < units:
                self._given_back.clear()
                await self._given_back.wait()
            self._left -= units
        try:
            yield
        finally:
            self._left += units
            self._given_back.set()


def _expected(item: _Item) -> bool:
    """Whether somebody waits for it; otherwise it is done."""
    if not item.wanted():
        item.done.set_result(None)
    return not item.done.done()


def _set(future: asyncio.Future[Detections | None], result: Detections | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
