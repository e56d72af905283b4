"""The queue: what is computed together, who waits, what is let in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.serve.clients import Fake, picture
from triscale.errors import UserError
from triscale.serve.batching import Batcher, Encoded
from triscale.serve.metrics import WIDTH, Metrics
from triscale.serve.settings import RefusedError, Settings

ONE = Encoded(None, picture())


def with_batcher(use: Callable[[Batcher], Awaitable[Any]], detector: Fake, **settings: Any) -> Any:
    """What `use` gives, once the batcher is ready."""

    async def main() -> Any:
        metrics = Metrics(bytearray(8 * WIDTH))
        batcher = Batcher(lambda: detector, Settings("w", **settings), metrics)
        task = asyncio.create_task(batcher.run())
        while batcher.detector is None:
            await asyncio.sleep(0.001)
        try:
            return await asyncio.wait_for(use(batcher), 30)
        finally:
            detector.gate.set()
            task.cancel()

    return asyncio.run(main())


def test_nothing_is_let_in_before_the_network_is_there() -> None:
    async def main() -> None:
        batcher = Batcher(Fake, Settings("w"), Metrics(bytearray(8 * WIDTH)))
        with pytest.raises(RefusedError, match="being loaded"):
            await batcher.detect([ONE])

    asyncio.run(main())


def test_what_comes_together_is_computed_together() -> None:
    detector = Fake()

    async def use(batcher: Batcher) -> list[int]:
        found = await asyncio.gather(*(batcher.detect([ONE]) for _ in range(10)))
        assert all(one.size == (20, 30) for (one,) in found)
        return detector.batches

    assert with_batcher(use, detector, batch_size=4, window=500) == [4, 4, 2]


def test_who_is_alone_does_not_wait() -> None:
    async def use(batcher: Batcher) -> float:
        began = time.perf_counter()
        await batcher.detect([ONE])
        return time.perf_counter() - began

    assert with_batcher(use, Fake(), window=1000) < 0.9


def test_the_queue_is_bounded() -> None:
    detector = Fake()

    async def use(batcher: Batcher) -> None:
        detector.gate.clear()
        first = asyncio.create_task(batcher.detect([ONE] * 3))
        await asyncio.sleep(0)
        for number, fits in [(1, True), (2, False)]:
            if fits:
                batcher.require_room(number)
                continue
            with pytest.raises(RefusedError, match=r"queue is full \(3 pictures\)") as refused:
                await batcher.detect([ONE] * number)
            assert refused.value.status == 503
            assert refused.value.headers == {"Retry-After": "1"}
        detector.gate.set()
        assert len(await first) == 3
        assert batcher.waiting == 0

    with_batcher(use, detector, queue=4)


@pytest.mark.parametrize(
    ("size", "error"),
    [((13, 13), RuntimeError), ((14, 14), RefusedError)],
)
def test_one_failure_does_not_harm_the_others(
    size: tuple[int, int], error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    async def use(batcher: Batcher) -> list[Any]:
        bad = Encoded(None, picture(*size))
        asked = (batcher.detect([one]) for one in (ONE, bad, ONE))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = with_batcher(use, Fake(), window=500)
    assert len(first) == len(third) == 1
    assert isinstance(second, error)
    assert ("thirteen" in capsys.readouterr().err) == (error is RuntimeError)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"", UserError, "picture 2: the file is empty"),
        (b"GIF89a", UserError, "picture 2: not a picture"),
        (picture()[:-100], UserError, "picture 2: the JPEG is cut short"),
        (picture(101, 100), RefusedError, "picture 2: 100x101 pixels; expected at most 10,000"),
    ],
)
def test_bad_pictures_are_named(data: bytes, error: type[Exception], text: str) -> None:
    async def use(batcher: Batcher) -> None:
        with pytest.raises(error, match=text):
            await batcher.detect([ONE, Encoded(None, data)])
        assert batcher.waiting == 0

    with_batcher(use, Fake(), max_pixels=10_000)


def test_pixels_are_bounded() -> None:
    """Two pictures of the largest size at a time: the third waits outside of the batch."""
    detector = Fake()
    large = Encoded(None, picture(100, 100))

    async def use(batcher: Batcher) -> list[int]:
        assert len(await batcher.detect([large] * 5)) == 5
        return detector.batches

    assert with_batcher(use, detector, max_pixels=10_000, window=50) == [2, 2, 1]


def test_nobody_waits_for_what_was_given_up() -> None:
    detector = Fake()

    async def use(batcher: Batcher) -> list[int]:
        detector.gate.clear()
        first = asyncio.create_task(batcher.detect([ONE]))
        while not detector.batches:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(batcher.detect([ONE] * 2))
        await asyncio.sleep(0.05)
        second.cancel()
        detector.gate.set()
        await first
        while batcher.waiting:
            await asyncio.sleep(0.001)
        return detector.batches

    assert with_batcher(use, detector) == [1]
