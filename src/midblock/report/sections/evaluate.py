"""Evaluations: scores by task, what the same items say of two models, gain against loss, and what models wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from midblock.report.page.chart import Chart, Section
from midblock.report.page.facts import number
from midblock.report.page.palette import look
from midblock.report.page.provenance import provenance_of
from midblock.report.read.evaluation import EvaluateRun
from midblock.report.read.joint import Joint, labels_of
from midblock.report.read.reading import Run
from midblock.runs.finished import BASE
from midblock.runs.lenient import as_number, entries_of

MOST_ROWS = 60  # of a figure
MOST_ITEMS, OPEN, LETTERS = 8, 2, 1500  # whose outputs are shown, unfolded, and letters of each
KLS = (("kl_general", "General texts"), ("kl_general_reverse", "reverse"), ("kl_tasks", "Tasks' prompts"),
       ("kl_tasks_reverse", "reverse"))  # fmt: skip
DATA_FACTS: Mapping[str, str] = {
    "tasks": "Tasks", "general": "General texts", "general_hash": "Their content hash",
}  # fmt: skip
SCORES = "What each model reaches on each task: dots, with 95 % intervals (of variants of one question together)."
PAIRED = (
    "Second minus first on the same items, with 95 % intervals. The verdict asks p, corrected for all comparisons of "
    "the run (Holm). Detectable: the smallest difference that four of five such runs would find at the strictest level."
)
FORGOTTEN = (
    "Gain: the mean change on the tasks that tuning was about; loss: on the others. Above the dashed line a model lost "
    "more than it gained."
)


@dataclass(frozen=True)
class Level:
    """A number with its interval, of one model; NaN where there is none."""

    model: str
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str = "value", low: str = "low", high: str = "high") -> Level:
        return cls(str(row.get("model") or ""), *(as_number(row.get(key)) for key in (name, low, high)))

    def written(self) -> list[float | None]:
        return [each if math.isfinite(each) else None for each in (self.value, self.low, self.high)]


def evaluate_sections(run: Joint) -> list[Section]:
    """The sections of each evaluation; of several, each under its folder's name."""
    found = []
    for place, (member, label) in enumerate(zip(run.runs, labels_of(run.runs), strict=True)):
        for section in _sections(member, run):
            numbered = replace(section, id=f"{section.id}-{place + 1}") if place else section
            if place:
                numbered = replace(numbered, charts=tuple(replace(c, id=f"{c.id}-{place + 1}") for c in section.charts))
            titled = f"{section.title} · {label}" if len(run.runs) > 1 else section.title
            found.append(replace(numbered, title=titled))
    return found


def evaluate_provenance(run: Run) -> str:
    """How an evaluation was made."""
    return provenance_of(run, DATA_FACTS)


def hue_of(run: Joint, member: EvaluateRun, model: str) -> int:
    """A model's colour: that of the page, else by its place among the evaluation's models."""
    if model == BASE or run.hue(model):
        return run.hue(model)
    names = [BASE, *member.tuned]
    return names.index(model) if model in names else 0


def tasks_of(run: EvaluateRun) -> list[str]:
    return list(dict.fromkeys(str(row.get("task")) for row in entries_of(run.summary, "scores")))


def _sections(member: Any, run: Joint) -> list[Section]:
    if not isinstance(member, EvaluateRun):
        return []
    found = (_scores(member, run), _comparisons(member), _forgetting(member, run), _outputs(member, run))
    return [section for section in found if section is not None]


def _scores(member: EvaluateRun, run: Joint) -> Section | None:
    rows = entries_of(member.summary, "scores")
    if not rows:
        return None
    shown = [
        {"group": f"{row.get('task')}, {_words(row.get('metric'))}", "name": str(row.get("model")),
         "look": look(hue_of(run, member, str(row.get("model")))), "value": Level.of(row).written()}
        for row in rows[:MOST_ROWS]
    ]  # fmt: skip
    chart = Chart("scores", "Scores", SCORES, "estimates", wide=True, data={"rows": shown, "zero": False})
    head = ("Task", "Model", "Score", "95 % interval", "Items", "No answer", "Cut", "Rule")
    rules = {str(task.get("name")): str(task.get("rule") or "") for task in entries_of(member.summary, "tasks")}
    lines = [
        [str(row.get("task")), str(row.get("model")), number(as_number(row.get("value"))), _interval(row),
         *(_count(row.get(name)) for name in ("n", "no_answer", "cut")), rules.get(str(row.get("task")), "")]
        for row in rows
    ]  # fmt: skip
    note = (
        "No answer: the rule found none in the output, which counts as wrong. Cut: the output did not stop by itself."
    )
    return Section("scores", "Scores", "How often each model is right.", (chart,), body=_table(head, lines, note))


def _comparisons(member: EvaluateRun) -> Section | None:
    rows = entries_of(member.summary, "comparisons")
    if not rows:
        return None
    shown = [
        {"group": str(row.get("task")), "name": f"{row.get('second')} − {row.get('first')}",
         "look": {"better": "m1", "worse": "m2"}.get(str(row.get("verdict")), "m0"),
         "value": Level.of(row, "difference").written()}
        for row in rows[:MOST_ROWS]
    ]  # fmt: skip
    chart = Chart("comparisons", "Differences on the same items", PAIRED, "estimates", wide=True,
                  data={"rows": shown, "zero": True})  # fmt: skip
    head = ("Task", "Second", "First", "Difference", "95 % interval", "p", "p (Holm)", "Detectable", "Second is")
    lines = [
        [str(row.get("task")), str(row.get("second")), str(row.get("first")), number(as_number(row.get("difference"))),
         _interval(row), *(number(as_number(row.get(name))) for name in ("p", "p_holm", "detectable")),
         str(row.get("verdict"))]
        for row in rows
    ]  # fmt: skip
    level = as_number(member.summary.get("detectable_level"))
    note = f"Detectable: with 80 % power at a level of {number(level)}." if math.isfinite(level) else ""
    intro = "Both models answered the same items, so that only items on which they differ tell them apart."
    return Section("comparisons", "Which is better", intro, (chart,), body=_table(head, lines, note))


def _forgetting(member: EvaluateRun, run: Joint) -> Section | None:
    rows = entries_of(member.summary, "forgetting")
    if not rows:
        return None
    points = [point for row in rows if (point := forgetting_point(member, run, row)) is not None]
    chart = Chart("forgetting", "Gain against loss", FORGOTTEN, "plane", data={"points": points})
    head = ("Model", "Gain", "Loss", *(title for _, title in KLS), "Drift of weights")
    lines = [
        [str(row.get("model")), *(_estimate(row, name) for name in ("gain", "loss", *(name for name, _ in KLS))),
         number(as_number(row.get("drift")))]
        for row in rows
    ]  # fmt: skip
    reference = str(member.summary.get("reference") or BASE)
    note = (
        f"KL({reference}‖model) of next-token distributions, nats per token, then the other way round; brackets are "
        f"95 % intervals. Drift: ‖W − W of {reference}‖ over its norm."
    )
    intro = f"What tuning cost, measured against {reference}."
    return Section("forgetting", "Forgetting", intro, (chart,) if points else (), body=_table(head, lines, note))


def forgetting_point(member: EvaluateRun, run: Joint, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A model in the plane of gain and loss; None where one of them is not known."""
    gain, loss = (Level.of(row, name, f"{name}_low", f"{name}_high") for name in ("gain", "loss"))
    if not (math.isfinite(gain.value) and math.isfinite(loss.value)):
        return None
    hue = hue_of(run, member, gain.model)
    return {"name": gain.model, "look": look(hue), "x": gain.written(), "y": loss.written()}


def _outputs(member: EvaluateRun, run: Joint) -> Section | None:
    """The first items of each task, what each model wrote."""
    by_item: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in member.outputs:
        if line.get("output"):
            by_item.setdefault((str(line.get("task")), str(line.get("item"))), []).append(line)
    tasks = list(dict.fromkeys(task for task, _ in by_item))
    chosen = [key for task in tasks for key in [key for key in by_item if key[0] == task][:MOST_ITEMS]]
    if not chosen:
        return None
    cards = [_card(by_item[key], key[0], run, member) for key in chosen]
    more = "".join(cards[OPEN:])
    rest = f"<details><summary>{len(cards) - OPEN} more</summary>{more}</details>" if more else ""
    body = f'<div class="texts">{"".join(cards[:OPEN])}{rest}</div>'
    return Section("outputs", "What models wrote", "All outputs are in samples.jsonl.", (), body=body)


def _card(lines: Sequence[Mapping[str, Any]], task: str, run: Joint, member: EvaluateRun) -> str:
    first = lines[0]
    expected = f" · expected: {first.get('expected')}" if first.get("expected") else ""
    title = f"<small>{escape(task + _short(expected))}</small><br>{escape(_short(first.get('prompt')))}"
    columns = "".join(_column(line, look(hue_of(run, member, str(line.get("model"))))) for line in lines)
    return f'<article class="text"><p class="prompt">{title}</p><div class="answers">{columns}</div></article>'


def _column(line: Mapping[str, Any], colour: str) -> str:
    answer = "no answer" if line.get("answer") is None else f"answer: {_short(line.get('answer'), 60)}"
    said = f"{answer}, score {number(as_number(line.get('value')))}" + (", cut" if line.get("cut") is True else "")
    title = f'<h4><span class="dot {colour}"></span>{escape(str(line.get("model")))} <small>{escape(said)}</small></h4>'
    return f'<div>{title}<p tabindex="0">{escape(_short(line.get("output")))}</p></div>'


def _short(text: Any, letters: int = LETTERS) -> str:
    text = "" if text is None else str(text)
    return text if len(text) <= letters else f"{text[:letters]} …"


def _words(name: Any) -> str:
    return str(name or "").replace("_", " ")


def _count(value: Any) -> str:
    known = as_number(value)
    return f"{known:.0f}" if math.isfinite(known) else "–"


def _interval(row: Mapping[str, Any]) -> str:
    low, high = (as_number(row.get(key)) for key in ("low", "high"))
    return f"[{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else "–"


def _estimate(row: Mapping[str, Any], name: str) -> str:
    ends = {"low": row.get(f"{name}_low"), "high": row.get(f"{name}_high")}
    interval = _interval(ends)
    return number(as_number(row.get(name))) + (f" {interval}" if interval != "–" else "")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], note: str) -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return (
        f'<div class="tile card"><div class="scroll" tabindex="0"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div><p>{escape(note)}</p></div>"
    )
