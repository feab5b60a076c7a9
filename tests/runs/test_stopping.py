"""Asked to stop: at once, or at the next boundary of work that asks."""

import os
import signal
import sys
import threading

import pytest

from midblock.base import MidblockError, Silent
from midblock.runs.stopping import STOPPING, Stoppable, Stopped, Stopping, seconds_of
from midblock.runs.where import Where

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5400", 5400),
        ("45s", 45),
        ("90m", 5400),
        ("3h", 10800),
        ("1h30m", 5400),
        ("1d12h", 129600),
        ("3", 3),
        ("2.5H", 9000),
    ],
)
def test_times_are_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-3h", "h", "3 hours", "1h30", "3x", "inf", "nan", "9" * 5000, "1m1"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(MidblockError, match="is no time"):
        seconds_of(text)
    with pytest.raises(MidblockError, match="is no time"):
        Where(max_time=text)


def test_a_signal_stops_at_once_where_nobody_waits():
    stopping = Stopping()
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped, stopping.heeding_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143
    assert not stopping.asked


def test_a_signal_waits_for_the_boundary_and_a_second_one_does_not():
    stopping = Stopping()
    with pytest.raises(Stopped), stopping.heeding_signals(), stopping.stoppable():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.due()
        stopping.check()  # work that asks itself is not stopped by others
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second signal was not heeded")


def test_the_handler_of_before_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stopping().heeding_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_signals_alone():
    seen = []

    def work():
        with Stopping().heeding_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_progress_stops_when_the_time_is_over():
    advance = Stoppable(Silent()).phase("measuring", 2)
    advance(1)
    with STOPPING.within("1h"):
        advance(1)
    with STOPPING.within("0.000001"), pytest.raises(Stopped, match=r"after 0\.000001 \(--max-time\)"):
        advance(1)
    advance(1)
