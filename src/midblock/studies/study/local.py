"""The backend `local`: processes of this machine, some at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from midblock.base import MidblockError
from midblock.runs.stopping import STOPPING
from midblock.studies.study.crew import Crew, Ended, Work, environment
from midblock.studies.study.worker import LOG

FORKS = sys.platform == "linux"  # elsewhere system libraries do not outlive a fork
TICK = 0.05  # seconds between looks at the processes
PATIENCE = 5.0  # seconds for a process to end when it is told to


class Starter(Protocol):
    """Begins processes and knows which have ended."""

    def begin(self, number: int, work: Work) -> None:
        """Begin a trial's process."""
        ...

    def ended(self) -> list[tuple[int, int]]:
        """Numbers of those that ended since the last look, with their exit codes."""
        ...

    def stop(self) -> None:
        """End what is running."""
        ...


def run_locally(works: Sequence[Work], crew: Crew, ended: Ended) -> None:
    """Do the works, `jobs` at a time; when this process stops, or dies, so do the trials'."""
    starter: Starter = (Nursery if FORKS else Processes)(crew)
    waiting, running = list(range(len(works)))[::-1], set[int]()
    try:
        while waiting or running:
            while waiting and len(running) < crew.settings.jobs:
                running.add(waiting[-1])
                starter.begin(waiting[-1], works[waiting.pop()])
            for number, code in starter.ended():
                running.remove(number)
                ended(works[number], _problem(code))
            STOPPING.check()
            time.sleep(TICK)
    finally:
        starter.stop()


@dataclass
class Nursery:
    """One process that has everything imported and forks the trials'."""

    crew: Crew
    process: subprocess.Popen[bytes] | None = None
    heard: bytes = b""

    def begin(self, number: int, work: Work) -> None:
        """Ask for a trial's process."""
        if self.process is None:
            command = [sys.executable, "-m", "midblock.studies.study.nursery"]
            self.process = _started(command, self.crew, self.crew.logs / "nursery.log", answers=True)
        folder, stages, threads, _ = self.crew.arguments(work)
        self._asks(json.dumps([number, folder, stages, threads]).encode() + b"\n")

    def ended(self) -> list[tuple[int, int]]:
        """What the process said since the last look.

        Raises:
            MidblockError: it has ended itself.
        """
        if self.process is None or self.process.stdout is None:
            return []
        part = self.process.stdout.read()
        *lines, self.heard = (self.heard + (part or b"")).split(b"\n")
        if part == b"" or (part is None and self.process.poll() is not None):
            raise self._gone()
        numbers = [line.split() for line in lines]
        return [(int(number), int(code)) for number, code in numbers]

    def stop(self) -> None:
        """Close its input: it goes, and the trials with it."""
        if self.process is None:
            return
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        _end([self.process])

    def _asks(self, line: bytes) -> None:
        if self.process is None or self.process.stdin is None:
            return
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._gone() from error

    def _gone(self) -> MidblockError:
        where = self.crew.logs / "nursery.log"
        return MidblockError(
            "the process that begins the trials has ended", hint=f"{where} tells why; --resume goes on"
        )


@dataclass
class Processes:
    """A process of its own for each trial, from its very start."""

    crew: Crew
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def begin(self, number: int, work: Work) -> None:
        """Begin a trial's process."""
        folder, stages, threads, _ = self.crew.arguments(work)
        command = [sys.executable, "-m", "midblock.studies.study.worker", folder, ",".join(stages), str(threads)]
        self.running[number] = _started(command, self.crew, work.folder / LOG, answers=False)

    def ended(self) -> list[tuple[int, int]]:
        """Those that ended since the last look."""
        gone = [number for number, process in self.running.items() if process.poll() is not None]
        return [(number, self.running.pop(number).returncode) for number in gone]

    def stop(self) -> None:
        """End those that run."""
        for process in self.running.values():
            process.terminate()
        _end(list(self.running.values()))


def _started(command: Sequence[str], crew: Crew, log: os.PathLike[str], *, answers: bool) -> subprocess.Popen[bytes]:
    """A process in a session of its own, so that Ctrl-C is this one's affair."""
    crew.logs.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if answers else subprocess.DEVNULL,
            stdout=subprocess.PIPE if answers else stream,
            stderr=stream,
            env={**os.environ, **environment(crew.threads)},
            start_new_session=True,
        )
    if process.stdout is not None:
        os.set_blocking(process.stdout.fileno(), False)
    return process


def _problem(code: int) -> str:
    """Why a process did not end by itself; "" where it did (0, or 2 with a line of its own)."""
    if code in (0, 2):
        return ""
    return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
