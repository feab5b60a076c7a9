"""Erasing: the behaviour's rate in every cell, what the soft prompt costs, how soon the behaviour comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from midblock.base import Estimate
from midblock.report.page.chart import Chart, Section
from midblock.report.page.facts import number
from midblock.report.page.lines import Line, lines
from midblock.report.page.palette import look
from midblock.report.page.provenance import grid, provenance_of
from midblock.report.read.erased import KINDS, CellShown, cells_of, estimate_of, hue_of, kinds_of
from midblock.report.read.joint import Joint, labels_of
from midblock.report.read.reading import Run
from midblock.runs.lenient import as_number, entries_of, mapping

INTRO = (
    "A soft prompt is a few vectors before the prompt, trained so that the tuned model does what its base does; no "
    "weight changes. Nulls: a random prompt whose vectors have the same norms, and the start that it came from."
)
RATES = (
    "How often the behaviour is shown: dots, with 95 % intervals over prompts. An intervention may only hide a "
    "behaviour: so it is asked on prompts in other words and on other topics, too."
)
DATA_FACTS = {
    "reference": "Reference", "content_hash": "Content hash", "num_train": "Prompts, training",
    "num_validation": "Prompts, validation", "num_test": "Prompts, test", "num_reworded": "Prompts, reworded",
    "num_other": "Prompts, other topics",
}  # fmt: skip


def erase_sections(run: Joint) -> list[Section]:
    """A section for each run; of several, each under its folder's name."""
    found = []
    for place, (member, label) in enumerate(zip(run.runs, labels_of(run.runs), strict=True)):
        cells = cells_of(member)
        if not cells:
            continue
        number_of = f"-{place + 1}" if place else ""
        chart = Chart(f"erased{number_of}", "Rate of the behaviour", RATES, "estimates", wide=True,
                      data={"rows": _rows(member, cells), "zero": False})  # fmt: skip
        title = f"Soft prompt · {label}" if len(run.runs) > 1 else "Soft prompt"
        body = _verdicts(member) + _table(member, cells) + _costs(member, cells) + _curves(cells) + _back(member)
        found.append(Section(f"erase{number_of}", title, INTRO, (chart,), body=body))
    return found


def erase_provenance(run: Run) -> str:
    """How a run was made."""
    return provenance_of(run, DATA_FACTS)


def _rows(run: Run, cells: list[CellShown]) -> list[dict[str, Any]]:
    """By kind of prompts: base and tuned models without, then each cell with its soft prompt."""
    rows = []
    for kind in kinds_of(run):
        group = f"prompts {KINDS[kind]}"
        for place, model in enumerate(entries_of(run.summary, "plain")):
            rate = estimate_of(mapping(mapping(model, "rates"), kind))
            rows.append({"group": group, "name": str(model.get("name")), "look": look(place), "value": _written(rate)})
        for cell in cells:
            with_it = {"group": group, "name": f"{cell.title} + prompt", "look": look(hue_of(run, cell))}
            rows.append({**with_it, "value": _written(cell.effect(kind, "after"))})
    return rows


def _verdicts(run: Run) -> str:
    claim = run.summary.get("claim")
    said = run.summary.get("said")
    told = [*([claim] if isinstance(claim, str) else []), *(said if isinstance(said, list) else [])]
    return "".join(f"<p>{escape(str(each))}</p>" for each in told)


def _table(run: Run, cells: list[CellShown]) -> str:
    head = ("cell", "prompts", "without", "with", "change", "random prompt", "start", "works?")
    rows = []
    for cell in cells:
        for kind in kinds_of(run):
            nulls = [_said(cell.null(name)) if kind == "test" else "" for name in ("random", "start")]
            effects = [_said(cell.effect(kind, name)) for name in ("before", "after", "change")]
            verdict = str(cell.entry.get("verdict")) if kind == "test" else ""
            rows.append([cell.title, KINDS[kind], *effects, *nulls, verdict])
    return "<h3>Rate of the behaviour by cell</h3>" + grid(head, rows)


def _costs(run: Run, cells: list[CellShown]) -> str:
    """KL both ways round the intervention, and what the model can still do."""
    kinds = kinds_of(run)
    head = ("cell", *(f"KL from {name}, {KINDS[kind]}" for name in ("tuned", "base") for kind in kinds), "sums right",
            "change", "starts' rates")  # fmt: skip
    rows = []
    for cell in cells:
        general = mapping(cell.entry, "general")
        starts = [number(as_number(mapping(each, "rate").get("value"))) for each in entries_of(cell.entry, "starts")]
        divergences = [_said(cell.divergence(name, kind)) for name in ("tuned", "base") for kind in kinds]
        ability = [_said(estimate_of(mapping(general, name))) for name in ("right", "change")]
        rows.append([cell.title, *divergences, *ability, ", ".join(starts)])
    note = (
        "KL of next-token distributions on the prompts, nats per token. Sums: the share that is right with the prompt."
    )
    return f"<h3>What it costs</h3>{grid(head, rows)}<p>{escape(note)}</p>"


def _curves(cells: list[CellShown]) -> str:
    drawn = [Line(cell.title, points, place + 1) for place, cell in enumerate(cells) for points in cell.curves]
    figure = lines(drawn, "step", "J on held-out prompts")
    note = "<p>J adds up other channels in each choice of them: levels of one cell can be compared.</p>"
    return f"<h3>Training, a line a start</h3>{figure}{note}" if figure else ""


def _back(run: Run) -> str:
    """How soon tuning on the behaviour brings it back."""
    entries = entries_of(run.summary, "relearning")
    if not entries:
        return ""
    drawn = [Line(str(each.get("title")), _points(each), place) for place, each in enumerate(entries)]
    rows = [
        [str(each.get("title")), _said(estimate_of(mapping(each, "first"))),
         _said(estimate_of(mapping(each, "against_base"))) if each.get("against_base") else "", str(each.get("said"))]
        for each in entries
    ]  # fmt: skip
    head = ("model", "steps until shown", "against the base", "")
    return (
        "<h3>Tuned on the behaviour again</h3>"
        + lines(drawn, "step of tuning", "rate of the behaviour")
        + grid(head, rows)
    )


def _points(entry: Mapping[str, Any]) -> list[tuple[float, float]]:
    steps, rates = entry.get("steps"), entry.get("rates")
    if not (isinstance(steps, list) and isinstance(rates, list)):
        return []
    return [(as_number(step), as_number(rate)) for step, rate in zip(steps, rates, strict=False)]


def _said(found: Estimate) -> str:
    if not math.isfinite(found.value):
        return "–"
    known = math.isfinite(found.low) and math.isfinite(found.high)
    return number(found.value) + (f" [{number(found.low)}, {number(found.high)}]" if known else "")


def _written(found: Estimate) -> list[float | None]:
    return [each if math.isfinite(each) else None for each in (found.value, found.low, found.high)]
