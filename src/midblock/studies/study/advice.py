"""What following advice would have cost in this sweep: `recommend` and its rivals, scored on the deciding task.

The sweep is the arms that differ from the reference in their blocks alone; ranks are compared over the smallest plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midblock.base import MidblockError
from midblock.studies.recommend.score import Advice, score_advice
from midblock.studies.study.best import Scores
from midblock.studies.study.results import Result
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import BASE, Trial

LEAST = 3  # plans that a ranking takes


def advice_of(
    study: StudyFile, trials: Sequence[Trial], results: Mapping[str, Result], scores: Scores | None, reference: str
) -> dict[str, Any] | None:
    """What `summary.json` says of advice; None where none was asked for, or nothing was tested.

    Args:
        trials: those that were tested.
        scores: of all arms on the deciding task, higher is better.
        reference: the arm that others are compared with.
    """
    told = results.get(BASE, Result()).files.get("advise")
    if told is None or scores is None:
        return None
    plans = plans_of(study, trials, results, scores.arms, reference)
    if len(plans) < 2:
        return {"advisers": [], "why_not": "fewer than two arms differ in their blocks alone"}
    advice = [Advice(each["name"], tuple(each["scores"]), tuple(each["blocks"])) for each in told["advisers"]]
    ranked = smallest(plans)
    try:
        found = score_advice(_rows(scores, plans), plans, advice, ranked=ranked, seed=study.seed)
    except MidblockError as error:
        return {"advisers": [], "why_not": str(error)}
    return {"advisers": [each.as_record() for each in found], "plans": list(plans), "ranked": list(ranked)}


def plans_of(
    study: StudyFile, trials: Sequence[Trial], results: Mapping[str, Result], arms: Sequence[str], reference: str
) -> dict[str, tuple[int, ...]]:
    """The blocks of each arm that differs from the reference (or the first arm) in nothing else that was asked for."""
    first = {trial.arm: trial for trial in reversed(trials)}
    known = [arm for arm in arms if arm in first]
    if not known:
        return {}
    aside = {"layers", "seed", *study.select}
    others = {arm: {key: value for key, value in first[arm].options.items() if key not in aside} for arm in known}
    alike = others[reference if reference in known else known[0]]
    plans: dict[str, tuple[int, ...]] = {}
    for arm in known:
        files = [results[trial.name].files for trial in trials if trial.arm == arm and trial.name in results]
        tuned = next((each["tune"] for each in files if "tune" in each), None)
        if tuned is not None and others[arm] == alike:
            plans[arm] = tuple(tuned["blocks"])
    return plans


def smallest(plans: Mapping[str, Sequence[int]]) -> list[str]:
    """The plans of fewest blocks, which rank the depth; all of them where they are fewer than three."""
    least = min(map(len, plans.values()))
    few = [name for name, blocks in plans.items() if len(blocks) <= least + 1]
    return few if len(few) >= LEAST else list(plans)


def _rows(scores: Scores, plans: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """A row for each plan, seed and item, scaled so that their plain mean is the task's weighted one."""
    scaled = scores.values * scores.weights / scores.weights.mean()
    return [
        {"plan": arm, "seed": seed, "item": item, "score": float(value)}
        for arm, of_arm in zip(scores.arms, scaled, strict=True)
        if arm in plans
        for seed, of_seed in enumerate(of_arm)
        for item, value in enumerate(of_seed)
    ]
