"""The first signal is noted, the second ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from search.signals import Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_is_noted(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
        assert signals.exit_code == code
    assert signal.getsignal(number) is before


def test_the_second_ends_the_process() -> None:
    script = """
import os, signal
from search.signals import Signals
with Signals():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (143, b"")


def test_another_thread_hears_none() -> None:
    heard: list[int | None] = []

    def listen() -> None:
        with Signals() as signals:
            heard.append(signals.received)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [None]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
