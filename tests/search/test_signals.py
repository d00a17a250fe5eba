"""The first signal is noted, the second ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from search.signals import Signals


@pytest.mark.usefixtures("hung_up")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
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
with Signals(lambda: print("others end", flush=True)):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (143, b"others end\n")


def test_under_nohup_a_terminal_may_be_closed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_that_is_passed_on_as_well_is_no_second() -> None:
    """``timeout`` sends it to the process and to its group: an orderly end is asked for once."""
    script = """
import os, signal, time
from search.signals import Signals
with Signals() as signals:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    print(signals.exit_code, flush=True)
    time.sleep(0.6)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (130, b"130\n")


@pytest.mark.usefixtures("hung_up")
@pytest.mark.parametrize("pair", [("SIGTERM", "SIGHUP"), ("SIGHUP", "SIGTERM")])
def test_a_session_that_is_closed_may_send_two(pair: tuple[str, str]) -> None:
    script = f"""
import os, signal
from search.signals import Signals
with Signals() as signals:
    os.kill(os.getpid(), signal.{pair[0]})
    os.kill(os.getpid(), signal.{pair[1]})
    print(signals.exit_code, flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    expected = 128 + signal.Signals[pair[0]]
    assert (ended.returncode, ended.stdout) == (0, b"%d\n" % expected)


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
