"""Copies to a GPU: what waits for what, by streams that only write down what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from triscale.data.prefetch import on_device
from triscale.step import _blank
from triscale.types import Batch


class Field:
    """In the place of a tensor."""

    def __init__(self, name: str, journal: list[str]) -> None:
        self.name, self._journal = name, journal

    def to(self, device: torch.device, *, non_blocking: bool) -> Field:
        assert non_blocking
        self._journal.append(f"{self.name} to {device} on {STREAMS[-1]}")
        return Field(f"{self.name}'", self._journal)

    def record_stream(self, stream: Stream) -> None:
        self._journal.append(f"{self.name} used on {stream.name}")


class Stream:
    def __init__(self, name: str, journal: list[str]) -> None:
        self.name, self._journal = name, journal

    def wait_stream(self, other: Stream) -> None:
        self._journal.append(f"{self.name} waits for {other.name}")


STREAMS = ["work"]
CUDA = torch.device("cuda", 1)


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        STREAMS.append(stream.name)
        yield
        STREAMS.pop()

    def copies(device: torch.device) -> Stream:
        assert device == CUDA
        return Stream("copies", written)

    monkeypatch.setattr(torch.cuda, "Stream", copies)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(STREAMS[-1], written))
    return written


def fake(names: str, journal: list[str]) -> Iterator[Any]:
    """Batches of two fields, which the journal calls by name."""
    for name in names:
        journal.append(f"load {name}")
        yield Fields([Field(f"{name}{i}", journal) for i in range(2)])


class Fields(list[Field]):
    def to(self, device: torch.device) -> Fields:
        return Fields([field.to(device, non_blocking=True) for field in self])


def test_the_cpu_gets_them_as_they_are() -> None:
    assert list(on_device(iter([]), torch.device("cpu"))) == []
    batches = iter([_blank(2, 32, 1)])
    assert on_device(batches, torch.device("cpu")) is batches


def test_no_batches(journal: list[str]) -> None:
    assert list(on_device(fake("", journal), CUDA)) == []
    assert journal == []


def test_copies_go_beside_the_work(journal: list[str]) -> None:
    """A step begins after its own copy, and the next copy doesn't begin after that step."""
    for batch in on_device(fake("ab", journal), CUDA):
        journal.append(f"step with {batch[0].name}")  # type: ignore[attr-defined]
    assert journal == [
        line.replace("*", name)
        for name in "ab"
        for line in (
            "load *",
            *("*0 to cuda:1 on copies", "*1 to cuda:1 on copies"),
            "work waits for copies",
            *("*0' used on work", "*1' used on work"),
            "step with *0'",
        )
    ]
    assert STREAMS == ["work"]


def test_an_error_comes_when_its_batch_is_wanted(journal: list[str]) -> None:
    """And the loader is closed with the loop, so that its workers end."""
    closed: list[bool] = []

    def breaking() -> Iterator[Any]:
        try:
            yield from fake("a", journal)
            raise ValueError("a broken picture")
        finally:
            closed.append(True)

    batches = on_device(breaking(), CUDA)
    next(batches)
    assert closed == []
    with pytest.raises(ValueError, match="a broken picture"):
        next(batches)
    assert closed == [True]
    batches = on_device(breaking(), CUDA)
    next(batches)
    del batches
    assert closed == [True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_arrives_is_what_was_sent() -> None:
    """While the device is kept busy, and the batches before are forgotten."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 8, 320, 320, 3), generator=generator, dtype=torch.uint8)
    sent = [_blank(8, 320, 3)._replace(images=each) for each in images]
    pinned = (Batch(*(field.pin_memory() for field in batch)) for batch in sent)
    work = torch.rand(2048, 2048, device="cuda")
    sums: list[torch.Tensor] = []
    for batch in on_device(pinned, torch.device("cuda", 0)):
        for _ in range(20):
            work = (work @ work).clamp(max=1)
        sums.append(torch.stack([part.images.double().sum() for part in batch.split(3)]))
    for found, batch in zip(sums, sent, strict=True):
        expected = [part.images.double().sum().item() for part in batch.split(3)]
        assert found.tolist() == expected
