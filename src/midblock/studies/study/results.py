"""What a study's trials left in their folders, read back, and what arms scored on one task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from midblock.base.clusters import Clusters
from midblock.base.json_file import read_object
from midblock.runs.lenient import as_number, read_json
from midblock.studies.study.best import Scores
from midblock.studies.study.rounds import Seen
from midblock.studies.study.stages import FAILED, STAGES, done
from midblock.studies.study.trials import BASE, Trial

TRIALS = "trials"  # the folder of trials in that of the study
Told = Mapping[str, Any]  # what a stage left in its file


@dataclass(frozen=True)
class Result:
    """What a trial's folder holds.

    Attributes:
        files: by stage, what it left.
        failed: why it ended, in a line; "" where it did not.
    """

    files: Mapping[str, Told] = field(default_factory=dict)
    failed: str = ""

    @property
    def seconds(self) -> float:
        return sum(as_number(told.get("seconds")) for told in self.files.values())

    @property
    def peak_memory_gb(self) -> float | None:
        found = [told["peak_memory_gb"] for told in self.files.values() if told.get("peak_memory_gb") is not None]
        return max(found) if found else None

    def tasks(self, stage: str) -> list[Told]:
        return list(self.files.get(stage, {}).get("tasks", ()))

    @property
    def seen(self) -> Seen:
        """What decides on the next round."""
        first = next(iter(self.tasks("validate")), None)
        score = None if first is None else first["value"] if first["higher_is_better"] else -first["value"]
        return Seen(frozenset(self.files), score, self.failed)


def read_result(folder: Path) -> Result:
    """Read a trial's folder, which may hold nothing yet.

    Raises:
        MidblockError: a file of a stage is broken.
    """
    files = {stage: read_object(folder / file) for stage, (file, _) in STAGES.items() if done(folder, stage)}
    told: dict[str, Any] = read_json(folder / FAILED, {})
    return Result(files, str(told.get("error", "")))


def read_results(folder: Path) -> dict[str, Result]:
    """The results of all trials of a study, by their names."""
    trials = folder / TRIALS
    return {each.name: read_result(each) for each in sorted(trials.iterdir())} if trials.is_dir() else {}


def tasks_told(results: Mapping[str, Result]) -> list[Told]:
    """Every task that is tested, with its metric; the first one decides."""
    for result in results.values():
        if found := result.tasks("evaluate"):
            return found
    return []


def scores_of(trials: Sequence[Trial], results: Mapping[str, Result], task: str) -> Scores | None:
    """What arms scored on a task: those that were tested with the seeds that the others have too.

    An arm of which nothing was tested is left out; where no seed is everyone's, so are arms that lack one.
    """
    tested = {trial.name: _of_task(results.get(trial.name, Result()), task) for trial in trials}
    found: dict[str, dict[int, Told]] = {}
    for trial in trials:
        if (told := tested[trial.name]) is not None:
            found.setdefault(trial.arm, {})[trial.seed] = told
    seeds = _shared(found.values())
    if not seeds and found:
        most = max(len(each) for each in found.values())
        found = {arm: each for arm, each in found.items() if len(each) == most}
        seeds = _shared(found.values())
    return _stacked(found, seeds) if seeds else None


def base_scores(results: Mapping[str, Result], task: str) -> Told | None:
    """What the base scored on a task."""
    return _of_task(results.get(BASE, Result()), task)


def with_base(scores: Scores, base: Told) -> Scores:
    """The base as one more arm, the same whatever the seed."""
    sign = 1.0 if base["higher_is_better"] else -1.0
    row = sign * np.array(base["values"], float)
    stacked = np.broadcast_to(row, (1, scores.values.shape[1], len(row)))
    return Scores((*scores.arms, BASE), np.concatenate([scores.values, stacked]), scores.weights, scores.clusters)


def _of_task(result: Result, task: str) -> Told | None:
    return next((told for told in result.tasks("evaluate") if told["task"] == task), None)


def _shared(found: Iterable[Mapping[int, Told]]) -> list[int]:
    arms = list(found)
    return [seed for seed in arms[0] if all(seed in each for each in arms)] if arms else []


def _stacked(found: Mapping[str, Mapping[int, Told]], seeds: Sequence[int]) -> Scores:
    first = next(iter(found.values()))[seeds[0]]
    sign = 1.0 if first["higher_is_better"] else -1.0
    values = np.array([[each[seed]["values"] for seed in seeds] for each in found.values()], float)
    clusters = Clusters.of([cluster or "" for cluster in first["clusters"]])
    return Scores(tuple(found), sign * values, np.array(first["weights"], float), clusters)
