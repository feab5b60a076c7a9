"""Crew and Work: what a backend is given, and what it tells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import midblock
from midblock.studies.study.settings import StudySettings


@dataclass(frozen=True)
class Work:
    """What one process is to do.

    Attributes:
        folder: of the trial.
        stages: names of `STAGES`.
    """

    folder: Path
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Crew:
    """Who does it.

    Attributes:
        settings: how many at a time, where.
        logs: a folder for what an engine writes.
    """

    settings: StudySettings
    logs: Path

    @property
    def threads(self) -> int:
        """Threads that a trial computes with."""
        return self.settings.threads or max(1, cores() // self.settings.jobs)

    def arguments(self, work: Work) -> tuple[str, tuple[str, ...], int, str]:
        """Those of `worker.work`."""
        return str(work.folder.resolve()), work.stages, self.threads, str(Path.cwd())


Ended = Callable[[Work, str], None]  # a work behind us, and why its process did not end by itself ("" where it did)
Backend = Callable[[Sequence[Work], Crew, Ended], None]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(threads: int) -> dict[str, str]:
    """What a trial's process needs to find this midblock, and to compute with so many threads."""
    here = str(Path(midblock.__file__).parents[1])
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


@contextmanager
def environment_with(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, the environment that new processes inherit has these values."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
