"""Studies: of each task the arms, how likely each is the best, what they cost, and what they gained and forgot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from midblock.base import Estimate
from midblock.report.page.amounts import count
from midblock.report.page.chart import Section
from midblock.report.page.facts import number
from midblock.report.page.provenance import grid
from midblock.report.page.scatter import Dot, scatter
from midblock.report.read.joint import Joint, labels_of
from midblock.report.read.reading import Run
from midblock.report.read.studied import ArmShown, TaskShown, tasks_of
from midblock.runs.lenient import as_number, entries_of, mapping

NOWHERE = Estimate(math.nan, math.nan, math.nan, 0)
INTRO = (
    "P(best) is how likely an arm is the best one, by a bootstrap over seeds and items together. Differences are on "
    "the same items and seeds; p is Holm's, over the arms of a task."
)
EQUAL = 1.05  # largest over smallest count of parameters that is called equal


def study_sections(run: Joint) -> list[Section]:
    """A section for each study; of several, each under its folder's name."""
    found = []
    for place, (member, label) in enumerate(zip(run.runs, labels_of(run.runs), strict=True)):
        tasks = tasks_of(member)
        body = "".join(_task(task, member) for task in tasks) + _forgotten(tasks) + _rest(member)
        title = f"Study · {label}" if len(run.runs) > 1 else "Study"
        if body:
            found.append(Section(f"study-{place + 1}" if place else "study", title, INTRO, (), body=body))
    return found


def efficiency_dots(task: TaskShown) -> tuple[list[Dot], str]:
    """Score against trained parameters; side by side where all arms train as many. With what the axis says."""
    alike = equal(task)
    said = f"arms, each of {count(task.arms[0].parameters)} trained parameters"
    axis = said if alike else "trained parameters, millions"
    places = [float(place) if alike else arm.parameters / 1e6 for place, arm in enumerate(task.arms, 1)]
    dots = [Dot(arm.name, Estimate(at, math.nan, math.nan, 0), arm.score)
            for at, arm in zip(places, task.arms, strict=True)]  # fmt: skip
    return dots, axis


def equal(task: TaskShown) -> bool:
    """Whether all arms train about as many parameters."""
    sizes = [arm.parameters for arm in task.arms]
    return all(map(math.isfinite, sizes)) and max(sizes) <= EQUAL * min(sizes)


def forgetting_dots(tasks: Sequence[TaskShown]) -> Iterator[tuple[TaskShown, TaskShown, list[Dot]]]:
    """What arms gained on the deciding task against what they gained or lost on a task that tuning does not aim at."""
    aimed = next((task for task in tasks if not task.general), None)
    for task in tasks if aimed is not None else ():
        if task.general and aimed is not None:
            dots = [Dot(arm.name, task.gains.get(arm.name, NOWHERE), aimed.gains.get(arm.name, NOWHERE))
                    for arm in aimed.arms]  # fmt: skip
            yield aimed, task, dots


def _task(task: TaskShown, run: Run) -> str:
    theirs = any(math.isfinite(arm.published) for arm in task.arms)
    head = ["arm", "blocks", task.metric, "95 %", "P(best)", "parameters",
            f"against {run.summary.get('reference', '')}", "p"]  # fmt: skip
    rows = [["base", "", _value(task.base.value), _ends(task.base), "", "", "", ""]]
    rows += [_row(arm) for arm in task.arms]
    if theirs:
        head.append(next(arm.source for arm in task.arms if arm.source))
        rows = [[*row, _value(value)] for row, value in
                zip(rows, [math.nan, *(arm.published for arm in task.arms)], strict=True)]  # fmt: skip
    dots, axis = efficiency_dots(task)
    title = f"{escape(task.name)}{' (not aimed at)' if task.general else ''}"
    return f"<h3>{title}</h3>{grid(head, rows)}{scatter(dots, axis, task.metric, told=not equal(task))}"


def _row(arm: ArmShown) -> list[str]:
    against = f"{_value(arm.against.value)} {_ends(arm.against)}" if math.isfinite(arm.against.value) else ""
    p = f"{arm.p:.3g}" if math.isfinite(arm.p) else ""
    chance = f"{arm.chance:.2f}" if math.isfinite(arm.chance) else ""
    size = count(arm.parameters) if math.isfinite(arm.parameters) else ""
    return [arm.name, arm.layers, _value(arm.score.value), _ends(arm.score), chance, size, against, p]


def _forgotten(tasks: Sequence[TaskShown]) -> str:
    parts = [
        f"<h3>Gained on {escape(aimed.name)} against {escape(task.name)}</h3>"
        + scatter(dots, f"change of {task.name} ({task.metric})", f"change of {aimed.name} ({aimed.metric})", zero=True)
        for aimed, task, dots in forgetting_dots(tasks)
    ]
    return "".join(parts)


def _rest(run: Run) -> str:
    """What was selected, what halving spared, what failed."""
    parts = []
    if selected := mapping(run.summary, "selected"):
        rows = [[arm, ", ".join(f"{key} {value}" for key, value in chosen.items())]
                for arm, chosen in selected.items() if isinstance(chosen, dict)]  # fmt: skip
        parts.append("<h3>Selected on the validation items</h3>" + grid(("arm", "selected"), rows))
    if halving := mapping(run.summary, "halving"):
        parts.append(_halving(halving))
    if advice := mapping(run.summary, "advice"):
        parts.append(_advice(advice))
    if failed := mapping(run.summary, "failed"):
        parts.append("<h3>Failed</h3>" + grid(("trial", "why"), [[name, why] for name, why in failed.items()]))
    return "".join(parts)


def _advice(advice: Mapping[str, Any]) -> str:
    """What following each adviser would have cost."""
    rows = [
        [str(each.get("adviser")), str(each.get("picked") or "none"),
         *(text for name in ("regret", "correlation") for text in _told(each, name))]
        for each in entries_of(advice, "advisers")
    ]  # fmt: skip
    ranked = advice.get("ranked")
    over = f" over {len(ranked)} plans" if isinstance(ranked, list) else ""
    said = (
        "Asked before the sweep was looked at. Regret: what the best plan scored more than the one that the advice "
        f"picks. Rank correlation (Spearman{over}): whether the adviser ranks the depth as the sweep does."
        if rows
        else f"Advice was not scored: {advice.get('why_not')}."
    )
    head = ("adviser", "picks", "regret", "95 %", "rank correlation", "95 %")
    title = f"Advice, scored on {advice.get('task')} ({advice.get('metric')})"
    return f"<h3>{escape(title)}</h3><p>{escape(said)}</p>{grid(head, rows) if rows else ''}"


def _told(entry: Mapping[str, Any], name: str) -> tuple[str, str]:
    value, low, high = (as_number(entry.get(f"{name}{end}")) for end in ("", "_low", "_high"))
    return _value(value), _ends(Estimate(value, low, high, 0))


def _halving(halving: Mapping[str, Any]) -> str:
    spared = as_number(halving.get("spared"))
    said = f"Successive halving by {halving.get('by')} spared {spared:.0%} of the steps." if spared == spared else ""
    rows = [[str(each.get("arm")), _point(each), str(each.get("rung"))] for each in entries_of(halving, "dropped")]
    table = grid(("dropped arm", "with", "at rung"), rows) if rows else ""
    return f"<h3>Halving</h3><p>{escape(said)}</p>{table}"


def _point(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("arm", "rung"))


def _value(value: float) -> str:
    return number(value) if math.isfinite(value) else "–"


def _ends(estimate: Estimate) -> str:
    known = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    return f"[{number(estimate.low)}, {number(estimate.high)}]" if known else ""
