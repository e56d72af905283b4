"""Ctrl-C is a request; asked twice it is an order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from triscale.interrupt import Interrupted, stop_requests


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
        assert signal.getsignal(number) is signal.SIG_DFL, "the next one kills"
    assert signal.getsignal(number) == before


def test_the_second_signal_kills() -> None:
    code = (
        "import os, signal\n"
        "from triscale.interrupt import stop_requests\n"
        "with stop_requests() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(stop(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.returncode) == ("True\n", -signal.SIGINT)


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), stop_requests():
        raise Interrupted("saved")
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_signals_are_left_alone() -> None:
    answers: list[bool] = []

    def work() -> None:
        with stop_requests() as stop:
            answers.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
