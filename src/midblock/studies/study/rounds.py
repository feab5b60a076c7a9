"""Rounds: from what trials have found so far, what is to be done next; so a study that is resumed decides the same.

First every trial is tuned and validated, or, halving, the trials of the first rung, then of the next; then the best
point of each arm is tested. Nothing here reads a file: `Seen` is what the files said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import BASE, Trial

SHARES = (0.25, 0.5)  # of the steps, of the rungs before the last
Point = tuple[str, tuple[Any, ...]]  # an arm, and a choice of what is selected


@dataclass(frozen=True)
class Seen:
    """What the files of a trial's folder say.

    Attributes:
        stages: those that are done.
        score: on the validation's first task, higher is better; None before that.
        failed: in which line it ended; "" where it did not.
    """

    stages: frozenset[str] = frozenset()
    score: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Round:
    """What is to be done next, and what is decided.

    Attributes:
        due: trials with the stages that they still need; () when the study is at its end. None stands for the base.
        chosen: names of the trials that are tested.
        dropped: points that successive halving left behind, with the rung (from 0) at which.
    """

    due: tuple[tuple[Trial | None, tuple[str, ...]], ...]
    chosen: tuple[str, ...] = ()
    dropped: Mapping[Point, int] = field(default_factory=dict)


def next_round(study: StudyFile, trials: Sequence[Trial], reference: str, seen: Mapping[str, Seen]) -> Round:
    """What a study does next.

    Args:
        trials: all at their full length.
        reference: the arm whose best point halving never drops.
        seen: of each trial by its name (and of `rung_of` ones by theirs), where its folder holds anything.
    """
    first = ("tune", *(("validate",) if study.validate is not None else ()))
    last = (*first, "evaluate", *(("analyze",) if study.analyze is not None else ()))
    base = _open([(None, ("evaluate", *(("advise",) if study.advice is not None else ())))], seen)
    alive, dropped = list(dict.fromkeys(map(point_of, trials))), dict[Point, int]()
    for place, rung in enumerate(rungs(study, trials)):
        among = [trial for trial in rung if point_of(trial) in alive]
        due = _open([(trial, first) for trial in among], seen)
        whole = place == len(rungs(study, trials)) - 1
        if whole and _one_point_an_arm(alive):
            break
        if due:
            return Round((*base, *due), dropped=dropped)
        if not whole:
            kept = survivors(study, alive, among, seen, reference)
            dropped |= {point: place for point in alive if point not in kept}
            alive = kept
    chosen = choose(alive, [trial for trial in trials if point_of(trial) in alive], seen)
    told = [trial for trial in trials if point_of(trial) in chosen]
    names = tuple(trial.name for trial in told)
    return Round((*base, *_open([(trial, last) for trial in told], seen)), names, dropped)


def point_of(trial: Trial) -> Point:
    return trial.arm, trial.point


def rungs(study: StudyFile, trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials of each rung, those of earlier ones among them where they are the same; one rung without halving."""
    if study.halves == "seeds":
        seeds = list(dict.fromkeys(trial.seed for trial in trials))
        return [[trial for trial in trials if trial.seed in seeds[: count + 1]] for count in range(len(seeds))]
    if study.halves == "steps":
        return [*([shorter(trial, share) for trial in trials] for share in SHARES), list(trials)]
    return [list(trials)]


def shorter(trial: Trial, share: float) -> Trial:
    """The same trial with a share of its steps."""
    return replace(trial, name=f"{trial.name}-at{share:g}", share=share)


def survivors(
    study: StudyFile, alive: Sequence[Point], among: Sequence[Trial], seen: Mapping[str, Seen], reference: str
) -> list[Point]:
    """The better half of the points, of equals the earlier ones, and the reference's best one; or that of each arm."""
    if study.keep_arms:
        kept = [point for arm in dict.fromkeys(arm for arm, _ in alive)
                for point in _better_half([each for each in alive if each[0] == arm], among, seen)]  # fmt: skip
    else:
        kept = _better_half(alive, among, seen)
        if not any(arm == reference for arm, _ in kept):
            kept += _better_half([point for point in alive if point[0] == reference], among, seen)[:1]
    return [point for point in alive if point in kept]


def _better_half(points: Sequence[Point], among: Sequence[Trial], seen: Mapping[str, Seen]) -> list[Point]:
    """The best first."""
    ranked = sorted(points, key=lambda point: -_score(point, among, seen))
    return ranked[: math.ceil(len(ranked) / 2)]


def choose(alive: Sequence[Point], trials: Sequence[Trial], seen: Mapping[str, Seen]) -> list[Point]:
    """Of each arm the point that validates best on average over seeds, of equals the first."""
    best: dict[str, Point] = {}
    for point in alive:
        now = best.get(point[0])
        if now is None or _score(point, trials, seen) > _score(now, trials, seen):
            best[point[0]] = point
    return list(best.values())


def _score(point: Point, among: Sequence[Trial], seen: Mapping[str, Seen]) -> float:
    """The mean over seeds; that of a point of which a trial failed is below every other's."""
    found = [seen.get(trial.name, Seen()) for trial in among if point_of(trial) == point]
    scores = [each.score for each in found if each.score is not None]
    if not scores:
        return -math.inf
    whole = len(scores) == len(found)
    return sum(scores) / len(scores) if whole else sum(scores) / len(scores) - 1e9


def _one_point_an_arm(alive: Sequence[Point]) -> bool:
    """Whether nothing is left to choose, so that a trial goes through all its stages at once."""
    return len({arm for arm, _ in alive}) == len(alive)


def _open(
    wanted: Sequence[tuple[Trial | None, tuple[str, ...]]], seen: Mapping[str, Seen]
) -> list[tuple[Trial | None, tuple[str, ...]]]:
    """What is not done yet; a trial that failed is left alone."""
    found = []
    for trial, stages in wanted:
        known = seen.get(BASE if trial is None else trial.name, Seen())
        missing = tuple(stage for stage in stages if stage not in known.stages)
        if missing and not known.failed:
            found.append((trial, missing))
    return found
