"""Carvings: is the carrier what the behaviour rests on, in words and numbers; where it lies; how large it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from midblock.base.files import size_text
from midblock.report.page.chart import Chart, Section
from midblock.report.page.facts import number
from midblock.report.page.modules import heat_rows
from midblock.report.page.palette import look
from midblock.report.page.provenance import grid
from midblock.report.read.joint import Joint, labels_of
from midblock.report.read.reading import Run
from midblock.runs.lenient import as_number, entries_of, mapping

DENSITY = "mask_density"
MOST_ROWS = 60  # of a figure
UNTRAINED = "untrained carrier"
# Places of the colours, by what a contender is; the others follow.
HUES: Mapping[str, int] = {
    "base": 0, "tuned": 1, "carrier": 2, UNTRAINED: 2, "random": 3, "pruned": 4, "svd": 5,
}  # fmt: skip
BEHAVIOUR, KL = "behaviour", "kl_base"
TITLE = "Is the carrier what it rests on?"
INTRO = (
    "Necessary: without it the tuned model loses the behaviour. Sufficient: the base with it alone has the behaviour. "
    "Random carriers keep as many channels of every group, with the tuned model's values. Each verdict wants the whole "
    "95 % interval on one side of one half of what tuning added."
)
TRAINED = " The carrier's values were trained on under the masks; untrained, it has the tuned model's."
CAPTION = "How often each model shows the behaviour on the same held-out prompts, with 95 % intervals."
WHERE = (
    "The share of channels that the carrier keeps, by block and group: what a block reads of the residual stream, its "
    "hidden units, its queries, keys and values, and what it writes."
)


def carve_sections(run: Joint) -> list[Section]:
    """The sections of each carving; of several, each under its folder's name."""
    found = []
    for place, (member, label) in enumerate(zip(run.runs, labels_of(run.runs), strict=True)):
        for section in (_necessity(member), _where(member)):
            if section is None:
                continue
            if place:
                charts = tuple(replace(chart, id=f"{chart.id}-{place + 1}") for chart in section.charts)
                section = replace(section, id=f"{section.id}-{place + 1}", charts=charts)
            found.append(replace(section, title=f"{section.title} · {label}") if len(run.runs) > 1 else section)
    return found


def necessity_levels(run: Run, measure: str = BEHAVIOUR) -> list[tuple[str, int, float, float, float]]:
    """Each contender's name, colour, value and interval, as far as the summary tells them."""
    found = []
    for row in entries_of(run.summary, "necessity"):
        if row.get("measure") == measure and math.isfinite(value := as_number(row.get("value"))):
            ends = (as_number(row.get("low")), as_number(row.get("high")))
            found.append((str(row.get("contender")), HUES.get(str(row.get("kind")), 6), value, *ends))
    return found[:MOST_ROWS]


def _necessity(run: Run) -> Section | None:
    levels = necessity_levels(run)
    if not levels:
        return None
    title = f"Shows {run.summary.get('behaviour') or 'the behaviour'}"
    rows = [
        {"group": title, "name": name, "look": look(hue), "value": _written([value, low, high])}
        for name, hue, value, low, high in levels
    ]
    chart = Chart("necessity", title, CAPTION, "estimates", wide=True, data={"rows": rows, "zero": False})
    body = _verdicts(run) + _table(run) + _sizes(run)
    trained = any(row.get("kind") == UNTRAINED for row in entries_of(run.summary, "necessity"))
    return Section("necessity", TITLE, INTRO + TRAINED * trained, (chart,), body=body)


def _verdicts(run: Run) -> str:
    said = [str(each.get("words")) for each in entries_of(run.summary, "verdicts") if each.get("words")]
    return f'<ul class="notes">{"".join(f"<li>{escape(words)}</li>" for words in said)}</ul>' if said else ""


def _table(run: Run) -> str:
    """A row for each contender, for each measure its level and its difference to the tuned model."""
    measures = [measure for measure in entries_of(run.summary, "measures") if measure.get("name")]
    rows = {(row.get("contender"), row.get("measure")): row for row in entries_of(run.summary, "necessity")}
    head = ["model"]
    for measure in measures:
        head += [str(measure.get("title")), "minus tuned", "p"]
    lines = []
    for contender in list(dict.fromkeys(name for name, _ in rows))[:MOST_ROWS]:
        line = [str(contender)]
        for measure in measures:
            line += _cells(rows.get((contender, measure["name"]), {}))
        lines.append(line)
    about = "; ".join(f"{measure.get('title')}: {measure.get('about')}" for measure in measures)
    return f"{grid(head, lines)}<p>{escape(about)}. Brackets are 95 % intervals, paired over the same prompts.</p>"


def _cells(row: Mapping[str, Any]) -> list[str]:
    level = f"{number(as_number(row.get('value')))}{_interval(row.get('low'), row.get('high'))}"
    difference = as_number(row.get("tuned_difference"))
    if not math.isfinite(difference):
        return [level, "", ""]
    against = f"{number(difference)}{_interval(row.get('tuned_low'), row.get('tuned_high'))}"
    return [level, against, number(as_number(row.get("tuned_p")))]


def _sizes(run: Run) -> str:
    sizes = mapping(run.summary, "sizes")
    known = {name: as_number(value) for name, value in sizes.items() if not isinstance(value, dict)}
    if not all(math.isfinite(known.get(name, math.nan)) for name in ("carrier_bytes", "delta_bytes", "model_bytes")):
        return ""
    carrier, delta, model = (size_text(int(known[f"{name}_bytes"])) for name in ("carrier", "delta", "model"))
    return (
        f"<p>On disk the carrier takes {escape(carrier)}, all that tuning changed {escape(delta)}, the whole model "
        f"{escape(model)}.</p>"
    )


def _where(run: Run) -> Section | None:
    groups = [module for module in run.present.get(DENSITY, ()) if module != "residual"]
    if not groups:
        return None
    chart = Chart(
        "mask_density", "Density by block and group", WHERE, "heat", metrics=(DENSITY,), rows=tuple(heat_rows(groups)),
        wide=True, models=tuple(run.tuned),
    )  # fmt: skip
    intro = "Where in depth the carrier sits. Beside an analysis of the same models it is held against own change."
    return Section("carried", "Where the carrier lies", intro, (chart,))


def _written(values: Sequence[float]) -> list[float | None]:
    return [each if math.isfinite(each) else None for each in values]


def _interval(low: Any, high: Any) -> str:
    ends = as_number(low), as_number(high)
    return f" [{number(ends[0])}, {number(ends[1])}]" if all(map(math.isfinite, ends)) else ""
