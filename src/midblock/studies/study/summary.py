"""What a study says: of each arm its score and how likely it is the best, against the reference and the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from midblock.base import Estimate
from midblock.studies.study.advice import advice_of
from midblock.studies.study.best import UNDECIDED, Scores, Verdict, compare_arms, judge
from midblock.studies.study.published import SOURCE, published
from midblock.studies.study.results import Result, Told, base_scores, scores_of, tasks_told, with_base
from midblock.studies.study.rounds import Point
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import BASE, Trial, arms_of

Record = dict[str, Any]


def summarize(
    study: StudyFile,
    trials: Sequence[Trial],
    results: Mapping[str, Result],
    chosen: Sequence[str],
    dropped: Mapping[Point, int],
    reference: str,
) -> Record:
    """What `summary.json` says.

    Args:
        chosen: names of the trials that were tested.
        dropped: points that successive halving left behind.
        reference: the arm, or the base, that others are compared with.
    """
    told = [trial for trial in trials if trial.name in chosen]
    tasks = [_task(study, told, results, each, reference) for each in tasks_told(results)]
    failed = {name: result.failed for name, result in results.items() if result.failed}
    return {
        "headline": _headline(tasks, failed),
        "models": [],
        "reference": reference,
        "probability": study.probability,
        "tasks": tasks,
        "advice": _advice(study, told, results, reference),
        "selected": _selected(study, told),
        "failed": failed,
        "trials": len(trials),
        "halving": _halving(study, trials, results, dropped),
        "total_blocks": next((r.files["tune"]["total_blocks"] for r in results.values() if "tune" in r.files), None),
    }


def _advice(study: StudyFile, told: Sequence[Trial], results: Mapping[str, Result], reference: str) -> Record | None:
    first = next(iter(tasks_told(results)), None)
    scores = None if first is None else scores_of(told, results, first["task"])
    found = advice_of(study, told, results, scores, reference)
    return found if found is None or first is None else {"task": first["task"], "metric": first["metric"], **found}


def _task(
    study: StudyFile, trials: Sequence[Trial], results: Mapping[str, Result], told: Told, reference: str
) -> Record:
    """What the study says of one task."""
    name, higher = told["task"], told["higher_is_better"]
    record: Record = {key: told[key] for key in ("task", "metric", "kind", "higher_is_better", "general")}
    base = base_scores(results, name)
    record["base"] = None if base is None else {key: base[key] for key in ("value", "low", "high", "n", "no_answer")}
    scores = scores_of(trials, results, name)
    if scores is None:
        return record | {"best": None, "arms": [], "comparisons": [], "against_base": []}
    verdict = judge(scores, study.probability, study.seed)
    whole = scores if base is None else with_base(scores, base)
    joint = verdict if base is None else judge(whole, study.probability, study.seed)
    compared = compare_arms(joint, reference, scores.arms) if reference in whole.arms else []
    gains = compare_arms(joint, BASE, scores.arms) if base is not None else []
    return record | {
        "best": verdict.best,
        "verdict": verdict.best or UNDECIDED,
        "leader": verdict.leader,
        "seeds": scores.values.shape[1],
        "items": scores.values.shape[2],
        "arms": [_arm(study, trials, results, verdict, place, told) for place in range(len(scores.arms))],
        "comparisons": [_signed(asdict(each), higher) for each in compared],
        "against_base": [_signed(asdict(each), higher) for each in gains],
    }


def _arm(
    study: StudyFile, trials: Sequence[Trial], results: Mapping[str, Result], verdict: Verdict, place: int, told: Told
) -> Record:
    scores, arm = verdict.scores, verdict.scores.arms[place]
    higher, share = told["higher_is_better"], told["kind"] == "share"
    ends = float(verdict.low[place]), float(verdict.high[place])
    low, high = ends if higher else (-ends[1], -ends[0])
    value = float(scores.means[place]) * (1 if higher else -1)
    mine = [trial for trial in trials if trial.arm == arm]
    files = [results[trial.name].files for trial in mine if trial.name in results]
    first = next((each["tune"] for each in files if "tune" in each), {})
    theirs = published(study, told["task"], mine[0].options)
    return {
        "arm": arm,
        **Estimate(value, low, high, scores.values.shape[2]).within((0, 1) if share else (None, None)).as_record(),
        "by_seed": (_by_seed(scores)[place] * (1 if higher else -1)).round(6).tolist(),
        "probability_best": float(verdict.probabilities[place]),
        "parameters": first.get("parameters"),
        "layers": first.get("layers"),
        "blocks": first.get("blocks"),
        "seconds": round(sum(results[trial.name].seconds for trial in mine if trial.name in results), 1),
        "published": None if theirs is None else {"value": theirs, "source": SOURCE},
    }


def _by_seed(scores: Scores) -> Any:
    return (scores.values @ scores.weights) / scores.weights.sum()


def _signed(record: Record, higher: bool) -> Record:
    """A difference in the metric's own direction."""
    if higher:
        return record
    return record | {"difference": -record["difference"], "low": -record["high"], "high": -record["low"]}


def _selected(study: StudyFile, told: Sequence[Trial]) -> Record:
    """Of each arm, what was selected for it."""
    return {arm: dict(zip(study.select, next(t.point for t in told if t.arm == arm), strict=True))
            for arm in arms_of(told)} if study.select else {}  # fmt: skip


def _halving(
    study: StudyFile, trials: Sequence[Trial], results: Mapping[str, Result], dropped: Mapping[Point, int]
) -> Record | None:
    """What successive halving left out, and what that spared."""
    if study.halves == "none":
        return None
    steps = {name: result.files["tune"]["steps"] for name, result in results.items() if "tune" in result.files}
    done = sum(steps.values())
    each = max((steps[trial.name] for trial in trials if trial.name in steps), default=0)
    whole = each * len(trials)
    return {
        "by": study.halves,
        "dropped": [{"arm": arm, **dict(zip(study.select, point, strict=True)), "rung": rung}
                    for (arm, point), rung in dropped.items()],
        "steps": done,
        "steps_without": whole,
        "spared": round(1 - done / whole, 4) if whole else 0.0,
    }  # fmt: skip


def _headline(tasks: Sequence[Record], failed: Mapping[str, str]) -> str:
    lost = f" {len(failed)} trials failed." if len(failed) > 1 else " One trial failed." if failed else ""
    first = tasks[0] if tasks else None
    if first is None or not first["arms"]:
        return f"No arm was tested.{lost}"
    arms = {arm["arm"]: arm for arm in first["arms"]}
    lead = arms[first["leader"]]
    chance, score = lead["probability_best"], _amount(first, lead["value"])
    if len(arms) == 1:
        return f"{lead['arm']} scores {score} on {first['task']}.{lost}"
    if first["best"] is None:
        said = f"Which of {len(arms)} arms is best on {first['task']}, the evidence does not say: {lead['arm']} leads"
        return f"{said} with {score}, and is the best with probability {chance:.2f}.{lost}"
    return (
        f"{lead['arm']} is best of {len(arms)} arms on {first['task']}: {score}, with probability {chance:.2f}.{lost}"
    )


def _amount(task: Record, value: float) -> str:
    return f"{value:.1%}" if task["kind"] == "share" else f"{value:.4g} ({task['metric']})"
