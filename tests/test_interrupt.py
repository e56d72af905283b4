"""Ctrl-C is a request; asked twice it is an order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from triscale import interrupt
from triscale.interrupt import Interrupted, leaving_at_once, stop_requests


def test_nothing_asked() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_one_signal_asks(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop:
        os.kill(os.getpid(), number)
        assert stop()
        assert stop(), "the request stays"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_second_signal_kills(number: signal.Signals) -> None:
    """But not its echo, which comes at once when a launcher passes on what everybody got."""
    code = (
        "import os, signal, sys, time\n"
        "number = int(sys.argv[1])\n"
        "from triscale.interrupt import stop_requests\n"
        "with stop_requests() as stop:\n"
        "    os.kill(os.getpid(), number)\n"
        "    os.kill(os.getpid(), number)\n"
        "    print(stop(), flush=True)\n"
        "    time.sleep(1.1)\n"
        "    os.kill(os.getpid(), number)\n"
        "    print('still here')\n"
    )
    command = [sys.executable, "-c", code, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("True\n", -number)


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop_requests():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


def test_who_was_let_go_leaves_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And if it stays, signals are what they were."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with pytest.raises(Interrupted), stop_requests():
            raise Interrupted("saved")
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
        monkeypatch.setattr(interrupt, "_FAREWELL", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
        for number in (signal.SIGINT, signal.SIGUSR1):  # as Python starts with
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )


def test_in_another_thread_signals_are_left_alone() -> None:
    answers: list[bool] = []

    def work() -> None:
        with stop_requests() as stop:
            answers.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_before_the_training_begins(number: signal.Signals) -> None:
    """A job that is asked to leave while it opens its data can be requeued, too."""
    before = signal.getsignal(number)
    try:
        with (
            pytest.raises(Interrupted, match="stopped before the training began"),
            leaving_at_once(),
        ):
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)
    with leaving_at_once():
        assert signal.getsignal(number) != before
    assert signal.getsignal(number) == before


def test_nothing_disturbs_the_last_moments() -> None:
    """Python puts its handlers away before it ends; what is ignored stays ignored."""
    code = (
        "import atexit, os, signal\n"
        "from triscale.cli import guarded\n"
        "from triscale.interrupt import Interrupted\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "def stop():\n"
        "    raise Interrupted('saved')\n"
        "raise SystemExit(guarded(stop))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=60
    )
    assert (done.stderr, done.returncode) == (b"triscale: saved\n", 75)
