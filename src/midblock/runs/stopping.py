"""Being asked to stop: by SIGTERM, as a queue does before it kills, or by the end of `--max-time`.

Work with many small steps says `stoppable()`, asks `due()` behind each and saves what it has before it calls `stop()`;
all other work is stopped where it stands, as by Ctrl-C. Signals are the process's, so there is one STOPPING.
"""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from midblock.base import MidblockError, Progress
from midblock.base.progress import Advance

GRACE = 20.0  # seconds; Slurm and Kubernetes kill 30 seconds after they asked
TERMINATED, OUT_OF_TIME = 143, 124  # as a shell and `timeout` have them
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Stopped(BaseException):
    """A run was asked to stop; as with KeyboardInterrupt, nothing that handles errors may swallow it.

    Attributes:
        reason: for one line.
        code: the exit code.
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


@dataclass
class Stopping:
    """Whether this process was asked to stop.

    Attributes:
        deadline: of `time.monotonic`; infinite where there is none.
        limit: how the deadline was asked for.
        asked: SIGTERM came.
        waiting: how many pieces of work will ask `due()` at their next boundary.
        kept: a run has opened its folder since signals are heeded, so what it found can be gone on with.
    """

    deadline: float = math.inf
    limit: str = ""
    asked: bool = False
    waiting: int = 0
    kept: bool = False

    def due(self) -> bool:
        return self.asked or time.monotonic() >= self.deadline

    def stop(self) -> NoReturn:
        """Raise Stopped."""
        raise self._stopped()

    def check(self) -> None:
        """Raise Stopped where that is due, except in work that asks itself."""
        if self.due() and not self.waiting:
            self.stop()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside, SIGTERM waits for whoever asks `due()`: for GRACE seconds, or until a second one comes."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @contextmanager
    def within(self, limit: str | None) -> Iterator[None]:
        """Inside, `due()` is true when the time is over.

        Args:
            limit: as of `seconds_of`.

        Raises:
            MidblockError: it is no time.
        """
        before = self.deadline, self.limit
        if limit is not None:
            self.deadline, self.limit = time.monotonic() + seconds_of(limit), limit
        try:
            yield
        finally:
            self.deadline, self.limit = before

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Inside, SIGTERM asks this process to stop; only a main thread can hear it."""
        self.kept = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.asked, own = False, os.getpid()
        insisting = threading.Timer(GRACE, os.kill, (own, signal.SIGTERM))
        insisting.daemon = True

        def terminated(number: int, frame: FrameType | None) -> None:
            if os.getpid() != own:  # a child that was forked: it ends as if nobody had heeded
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            elif self.waiting and not self.asked:
                self.asked = True
                insisting.start()
            else:
                self.asked = True
                self.stop()

        before = signal.signal(signal.SIGTERM, terminated)
        try:
            yield
        finally:
            insisting.cancel()
            signal.signal(signal.SIGTERM, before)
            self.asked = False

    def _stopped(self) -> Stopped:
        if self.asked or not self.limit:  # of several processes, another one may have been asked
            return Stopped("stopped by SIGTERM", TERMINATED)
        return Stopped(f"stopped after {self.limit} (--max-time)", OUT_OF_TIME)


def seconds_of(limit: str) -> float:
    """Read a time: seconds, or days, hours, minutes and seconds as in `1d12h`, `1h30m`, `90m`, `2.5h`.

    Raises:
        MidblockError: it is none, or not above zero.
    """
    text = limit.strip().lower()
    parts = re.findall(r"(\d{1,9}(?:\.\d{1,9})?)([dhms])", text)
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        parts = [(text, "s")]
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts).removesuffix("s") != text.removesuffix("s") or seconds <= 0:
        raise MidblockError(f"max_time {limit!r} is no time", hint="like 3h, 1h30m or 5400 (seconds)")
    return seconds


STOPPING = Stopping()


@dataclass(frozen=True)
class Stoppable:
    """Progress at each step of which the run may be stopped."""

    progress: Progress

    def phase(self, title: str, total: float) -> Advance:
        advance = self.progress.phase(title, total)

        def and_check(amount: float) -> None:
            advance(amount)
            STOPPING.check()

        return and_check
