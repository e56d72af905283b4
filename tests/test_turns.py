"""Turns and ratios are tested with the benchmarks; here is what the command needs besides."""

from __future__ import annotations

import pytest

from triscale import turns


class Clock:
    """Stands still but for what is slept and called."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([5.0], 5.0),  # long enough alone
        ([1.0, 0.5, 0.5], 0.5),  # the first wakes threads
        ([0.5, 0.25, 0.75, 0.5], 0.5),
    ],
)
def test_steady(clock: Clock, durations: list[float], expected: float) -> None:
    left = iter(durations)
    found = turns.steady(lambda: clock.sleep(next(left)), least=2.0, rest=9.0)
    assert found == pytest.approx(expected)
    assert list(left) == []
    assert clock.now == 9.0 + sum(durations)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 2), (1.5, 2), (7.0, 4)])
def test_rounds_until_the_time_is_over(clock: Clock, seconds: float, rounds: int) -> None:
    """Two seconds a round; the warm-up's don't count."""

    def measure() -> float:
        clock.sleep(1.0)
        return 1.0

    contenders = {"a": measure, "b": measure}
    found = turns.in_turns(contenders, rounds=2, seconds=seconds, warm_up=3)
    assert found == {name: [1.0] * rounds for name in "ab"}
    assert clock.now == 2.0 * (3 + rounds)


def test_no_contenders() -> None:
    assert turns.in_turns({}, rounds=2) == {}


def test_noise() -> None:
    first, second = turns.noise(2)
    assert first.shape == (480, 640, 3)
    assert (first != second).any()
    assert (first == turns.noise(1)[0]).all()
