"""The backend `submitit`: jobs of Slurm, or processes of this machine, each one trial.

A job that Slurm ends (its time is over, somebody else needs the node) is put back into the queue and goes on at the
first stage without a file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from midblock.base import MidblockError, unknown
from midblock.runs.stopping import STOPPING
from midblock.studies.study.crew import Crew, Ended, Work, environment, environment_with
from midblock.studies.study.extras import extra
from midblock.studies.study.settings import StudySettings
from midblock.studies.study.worker import logged

CLUSTERS = ("slurm", "local")
TICK = 0.2


class Job:
    """What submitit sends: the trial, and itself again where the job was cut off."""

    def __call__(self, *arguments: Any) -> bool:
        return logged(*arguments)

    def checkpoint(self, *arguments: Any) -> Any:
        """What goes back into the queue."""
        return extra("submitit", "slurm").helpers.DelayedSubmission(self, *arguments)


def check_submitit(settings: StudySettings) -> None:
    """Raise MidblockError where submitit is not installed, or the cluster is none that is known."""
    extra("submitit", "slurm")
    if settings.cluster not in (None, *CLUSTERS):
        raise unknown("cluster", str(settings.cluster), CLUSTERS)


def run_by_submitit(works: Sequence[Work], crew: Crew, ended: Ended) -> None:
    """Do the works as jobs: of Slurm all at once in an array, of this machine `jobs` at a time.

    Raises:
        MidblockError: submitit is not installed, or there is no Slurm.
    """
    submitit = extra("submitit", "slurm")
    with environment_with(environment(crew.threads)):
        executor = _executor(submitit, crew)
        at_once = crew.settings.jobs if executor.cluster == "local" else len(works)
        _go_through(executor, list(works), at_once, crew, ended)


def _executor(submitit: Any, crew: Crew) -> Any:
    settings = crew.settings
    try:
        executor = submitit.AutoExecutor(folder=crew.logs, cluster=settings.cluster)
    except (RuntimeError, ValueError) as error:
        raise MidblockError(f"submitit: {' '.join(str(error).split())}", hint="--cluster local") from error
    executor.update_parameters(
        name="midblock",
        timeout_min=max(1, round(60 * settings.hours)),
        cpus_per_task=crew.threads,
        gpus_per_node=settings.gpus,
    )
    if executor.cluster == "slurm":
        executor.update_parameters(slurm_array_parallelism=settings.jobs)
        if settings.partition is not None:
            executor.update_parameters(slurm_partition=settings.partition)
    return executor


def _go_through(executor: Any, waiting: list[Work], at_once: int, crew: Crew, ended: Ended) -> None:
    running: dict[Any, Work] = {}
    with _cancelled(running):
        while waiting or running:
            batch, waiting = waiting[: at_once - len(running)], waiting[at_once - len(running) :]
            if batch:
                jobs = executor.map_array(Job(), *zip(*map(crew.arguments, batch), strict=True))
                running |= dict(zip(jobs, batch, strict=True))
            for job in [each for each in running if each.done()]:
                ended(running.pop(job), _problem(job))
            STOPPING.check()
            time.sleep(TICK)


@contextmanager
def _cancelled(running: dict[Any, Work]) -> Iterator[None]:
    """What runs when the study stops is stopped too."""
    try:
        yield
    finally:
        for job in running:
            job.cancel()


def _problem(job: Any) -> str:
    error = job.exception()
    return "" if error is None else f"submitit: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
