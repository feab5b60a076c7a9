"""The real door, in this process, within limits: what a command line did, and what of it must never be.

A command answers 0 or 2, one line, in time, within memory, and touches nothing outside its output folder.
"""

from __future__ import annotations

import io
import re
import resource
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import scipy.stats  # noqa: F401  verbs load it where they first need it: its libraries are no command's memory

from midblock.cli.main import main

SECONDS = 15.0  # of processor time of one command; the slowest whole one takes two
WAITING = 60.0  # seconds in all, for one that waits for what never comes
AGAIN = 5.0  # and told again so often: a command can be stuck in what it does when it is told the first time
MEMORY = 2**30  # bytes of address space beyond what the process has
LONGEST = 2000  # letters of the one line


class Late(BaseException):
    """The command was still at work when its time was over."""


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: its exit code, None where it raised or did not end.
        out, err: what it printed.
        fault: what must not be, as "traceback" and where; "" where all is as it should be.
        trace: the traceback, "" where none.
    """

    code: int | None
    out: str
    err: str
    fault: str
    trace: str = ""

    @property
    def notes(self) -> set[str]:
        return {line for line in (self.out + "\n" + self.err).splitlines() if line.startswith(("Note: ", "note: "))}

    @property
    def line(self) -> str:
        """The one line, or the last of what was said."""
        said = [line for line in self.err.splitlines() if line.startswith("midblock: ")]
        return said[-1] if said else (self.trace + self.err).strip()[-300:]


def knock(arguments: Sequence[str]) -> Outcome:
    """Carry out one command line and judge how it ended; what it wrote is judged by `Kind`."""
    out, err = _Stream("strict"), _Stream("backslashreplace")
    code: int | None = None
    fault = trace = ""
    before, sys.argv = sys.argv, ["midblock", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err), _within():
            code = main(list(arguments))
    except Late:
        fault, trace = "hang", traceback.format_exc()
    except MemoryError:
        fault, trace = "memory", traceback.format_exc()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        fault, trace = f"traceback {type(error).__name__}", traceback.format_exc()
    finally:
        sys.argv = before
    said, errors = out.text, err.text
    trace = trace or _crash(errors)
    return Outcome(code, said, errors, fault or _misbehaved(code, said, errors), trace)


def _crash(err: str) -> str:
    """The traceback in the file that the one line names, which goes with it."""
    named = re.search(r"please report it, with (.+)\)", err)
    if named is None:
        return ""
    file = Path(named[1])
    text = file.read_text(encoding="utf-8")
    file.unlink()
    return text


def _misbehaved(code: int | None, out: str, err: str) -> str:
    lines = err.splitlines()
    said = [line for line in lines if line.startswith("midblock: ")]
    ours = said[-1] if said else ""
    if code not in (0, 2):
        return f"exit {code}"
    if "Traceback (most recent" in err:
        return "a traceback in what it says"
    if any(not (char.isprintable() or char in "\n ") for char in err + out):
        return "control characters"
    if code == 2 and (not lines or lines[-1] != ours or len(said) != 1):
        return f"{len(said)} lines"
    if code == 2 and len(ours) > LONGEST:
        return "a line without end"
    return ""


@contextmanager
def _within() -> Iterator[None]:
    """Time and memory that a command may take."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Late

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAITING))
    before = [signal.signal(number, late) for number, _, _ in clocks]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    others = [signal.setitimer(clock, seconds, AGAIN) for _, clock, seconds in clocks]  # a test has one, too
    try:
        yield
    finally:
        for (number, clock, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for (_, clock, _), other in zip(clocks, others, strict=True):
            signal.setitimer(clock, *other)


class _Stream(io.TextIOWrapper):
    """As Python's own standard streams: what cannot be encoded raises on standard output."""

    mode = "w"

    def __init__(self, errors: str) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)

    @property
    def name(self) -> str:
        return "<kept>"

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]
