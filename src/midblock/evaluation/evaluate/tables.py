"""The tables of an evaluation: a score for each model and task, and a comparison for each two models on each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from midblock.base import Estimate
from midblock.evaluation.exact_match import exact_interval
from midblock.evaluation.paired import ALPHA, Marks, Paired, holm, paired
from midblock.evaluation.task import SHARE, Scored, Task

BETTER, WORSE, UNTOLD = "better", "worse", "the evidence does not say"
SCORES = ("model", "task", "metric", "value", "low", "high", "n", "units", "no_answer", "cut", "failed")
COMPARISONS = ("task", "metric", "first", "second", "difference", "low", "high", "p", "p_holm", "detectable", "units",
               "verdict")  # fmt: skip
Answers = Mapping[tuple[str, str], Sequence[Scored]]  # by model and task, in the order of the task's items


@dataclass(frozen=True)
class Compared:
    """Two models on one task."""

    task: Task
    first: str
    second: str
    found: Paired

    def seen_from(self, reference: str) -> Compared:
        """The same with the reference as the first model."""
        if self.first == reference:
            return self
        back = self.found.difference
        turned = replace(self.found, difference=Estimate(-back.value, -back.high, -back.low, back.n))
        return Compared(self.task, self.second, self.first, turned)

    @property
    def gain(self) -> Estimate:
        """How much better the second is, whichever way is better."""
        each = self.found.difference
        return each if self.task.higher_is_better else Estimate(-each.value, -each.high, -each.low, each.n)


def marks_of(task: Task, scored: Sequence[Scored]) -> Marks:
    """What a model made of a task, in the order of its items."""
    values, weights = (np.array([getattr(each, name) for each in scored], dtype=float) for name in ("value", "weight"))
    return Marks(values, weights, task.kind == SHARE, task.clusters)


def score_rows(models: Sequence[str], tasks: Sequence[Task], answers: Answers, seed: int) -> list[dict[str, Any]]:
    """A row for each model and task, with the columns of SCORES.

    The interval of a share of items that stand alone is Clopper and Pearson's; else units are resampled.
    """
    return [_score(model, task, answers[model, task.name], seed) for task in tasks for model in models]


def _score(model: str, task: Task, scored: Sequence[Scored], seed: int) -> dict[str, Any]:
    marks = marks_of(task, scored)
    mean = marks.mean(seed)
    low, high = mean.low, mean.high
    if marks.share and marks.clusters is None:
        low, high = exact_interval(int(marks.values.sum()), len(scored))
    counts = {
        "no_answer": sum(each.answer is None for each in scored) if task.generates else None,
        "cut": sum(each.cut for each in scored) if task.generates else None,
        "failed": sum(bool(each.failed) for each in scored),
    }
    level = {"value": mean.value, "low": low, "high": high, "n": len(scored), "units": mean.units}
    return {"model": model, "task": task.name, "metric": task.metric, **level, **counts}


def compare(
    models: Sequence[str], tasks: Sequence[Task], answers: Answers, seed: int, reference: str | None = None
) -> list[Compared]:
    """Every two models on every task, the earlier one first.

    Args:
        reference: compare each with this one alone.
    """
    pairs = list(combinations(models, 2))
    if reference is not None:
        pairs = [(reference, model) for model in models if model != reference]
    return [
        Compared(task, a, b, paired(marks_of(task, answers[a, task.name]), marks_of(task, answers[b, task.name]), seed))
        for task in tasks
        for a, b in pairs
    ]


def comparison_rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """A row for each comparison, with the columns of COMPARISONS.

    p_holm is p corrected for all of them, and decides; `detectable` is what would be found in 80 of 100 runs at the
    strictest level that Holm asks for, 5 % over their number.
    """
    adjusted = holm([each.found.p for each in compared])
    return [_comparison(each, p, ALPHA / len(compared)) for each, p in zip(compared, adjusted, strict=True)]


def _comparison(each: Compared, p_holm: float, level: float) -> dict[str, Any]:
    found = each.found.difference
    return {
        "task": each.task.name,
        "metric": each.task.metric,
        "first": each.first,
        "second": each.second,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "p": each.found.p,
        "p_holm": p_holm,
        "detectable": each.found.detectable(level),
        "units": each.found.units,
        "verdict": verdict(each.gain.value, p_holm),
    }


def verdict(gain: float, p: float) -> str:
    """What may be said of the second model."""
    if p >= ALPHA or gain == 0 or math.isnan(gain):
        return UNTOLD
    return BETTER if gain > 0 else WORSE
