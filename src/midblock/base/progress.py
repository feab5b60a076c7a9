"""Progress of long work: a bar when a person watches, a line a minute otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO, runtime_checkable

from midblock.base.quoting import printable

Advance = Callable[[float], None]


@runtime_checkable
class Progress(Protocol):
    """Something that is told what is being done and how far it got."""

    def phase(self, title: str, total: float) -> Advance:
        """Begin a phase of `total` units of work; call the result with the units done since the last call."""
        ...


class Silent:
    """Progress that nobody sees."""

    def phase(self, title: str, total: float) -> Advance:
        return lambda amount: None


class Lines:
    """A line when a phase begins, ends, and once a minute between: for logs."""

    def __init__(self, stream: TextIO, seconds: float = 60.0) -> None:
        self.stream = stream
        self.seconds = seconds

    def phase(self, title: str, total: float) -> Advance:
        title = printable(title)
        done, said, start = 0.0, time.monotonic(), time.monotonic()
        print(f"{title} …", file=self.stream, flush=True)

        def advance(amount: float) -> None:
            nonlocal done, said
            done += amount
            now = time.monotonic()
            if done >= total > done - amount:
                print(f"{title}: done in {now - start:.0f} s", file=self.stream, flush=True)
            elif now - said >= self.seconds:
                said = now
                print(f"{title}: {done / total:.0%}", file=self.stream, flush=True)

        return advance


@contextmanager
def watched(stream: TextIO | None = None) -> Iterator[Progress]:
    """Give the progress that fits the stream (standard error by default): bars on a terminal, lines elsewhere."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield Lines(stream)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(compact=True), console=Console(file=stream)) as bars:

        class Watched:
            def phase(self, title: str, total: float) -> Advance:
                task = bars.add_task(escape(printable(title)), total=total)
                return lambda amount: bars.advance(task, amount)

        yield Watched()
