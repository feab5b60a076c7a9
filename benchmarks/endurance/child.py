"""A run as a process of its own, forked from one that has imported everything: a fresh interpreter would cost seconds.

The child calls the command line's `main` with its own standard output, error and folder, and ends with its code. An
audit hook writes down what it does to names on the disk, and kills it there if it is told to.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
LIMIT = 120.0  # seconds, after which a run hangs
FAST = 1000  # times faster goes a child's clock: pieces that are saved every 30 seconds are saved every 30 ms
OUT, ERR, EVENTS = "stdout", "stderr", "events"


@dataclass(frozen=True)
class Ended:
    """A process behind us.

    Attributes:
        code: its exit code; less the signal's number where one ended it, None where it hung.
        told: what it wrote to standard error.
        events: what it did to names in its place, as (seconds since the epoch, event, path).
        began, ended: seconds since the epoch.
        pid: its number.
    """

    code: int | None
    told: str
    events: tuple[tuple[float, str, str], ...]
    began: float
    ended: float
    pid: int

    @property
    def lines(self) -> list[str]:
        """What the command line itself had to say."""
        return [line for line in self.told.splitlines() if line.startswith("midblock:")]

    @property
    def crashed(self) -> bool:
        return "Traceback" in self.told

    def made(self, name: str) -> bool:
        """Whether it gave a file or folder its name."""
        return any(event == "os.rename" and Path(path).name == name for _, event, path in self.events)


@dataclass(frozen=True)
class Child:
    """A process under way.

    Attributes:
        pid: its number.
        notes: folder of its output and events.
        began: seconds since the epoch.
    """

    pid: int
    notes: Path
    began: float

    def end(self, *, after: float | None = None, by: signal.Signals = signal.SIGKILL) -> Ended:
        """Wait for it.

        Args:
            after: seconds from its beginning after which it gets the signal; None to let it be.
            by: the signal.
        """
        limit = self.began + LIMIT
        status = self._wait(min(limit, limit if after is None else self.began + after))
        if status is None and after is not None:
            os.kill(self.pid, by)
            status = self._wait(limit)
        if status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        told = (self.notes / ERR).read_text(encoding="utf-8", errors="replace")
        return Ended(code, told, _events(self.notes / EVENTS), self.began, time.time(), self.pid)

    def _wait(self, until: float) -> int | None:
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            if time.time() >= until:
                return None
            time.sleep(0.002)


def start(
    act: Callable[[Sequence[str]], int],
    words: Sequence[str],
    place: Path,
    notes: Path,
    *,
    kill_at: int = 0,
    gate: int | None = None,
) -> Child:
    """Fork a process that carries out a command.

    Args:
        act: `midblock.cli.main.main`, or what stands for it.
        place: the folder it works in.
        notes: where its output and events go.
        kill_at: the number of the event before which it kills itself, from 1; 0 for none.
        gate: a pipe that it reads from before it begins.
    """
    notes.mkdir(parents=True)
    for name in (OUT, ERR, EVENTS):
        (notes / name).touch()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, notes, time.time())
    code = 1
    try:
        _settle(words, place, notes, kill_at)
        if gate is not None:
            os.read(gate, 1)
        code = act(list(words))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(code)
    raise AssertionError("a child never returns")


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    os._exit(code)


def _settle(words: Sequence[str], place: Path, notes: Path, kill_at: int) -> None:
    """Make the process look like one that was just begun at a shell, and watch it."""
    for name, number in ((OUT, 1), (ERR, 2)):
        os.dup2(os.open(notes / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    os.chdir(place)
    sys.argv = ["midblock", *words]
    clock = time.monotonic
    time.monotonic = lambda: FAST * clock()
    events = os.open(notes / EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.addaudithook(_hook(str(place), events, kill_at))


def _hook(place: str, events: int, kill_at: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Write down, and count, what happens to names inside a place."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in WATCHED or (event == "open" and not (arguments[2] or 0) & WRITING):
            return
        path = _target(event, arguments)
        if path is None or not path.startswith(place):
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(events, f"{time.time()}\t{event}\t{path[len(place) + 1 :]}\n".encode())

    return hook


def _target(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The name that an event gives or takes away, absolute; None where it has none."""
    name = arguments[1] if event in ("os.rename", "os.link", "os.symlink") else arguments[0]
    if isinstance(name, int):
        return None
    where = arguments[-1] if event in ("os.mkdir", "os.remove", "os.rmdir") else -1
    parent = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) and where >= 0 else os.getcwd()
    return os.path.normpath(os.path.join(parent, os.fsdecode(name)))


def _events(file: Path) -> tuple[tuple[float, str, str], ...]:
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        when, event, path = line.split("\t", 2)
        found.append((float(when), event, path))
    return tuple(found)
