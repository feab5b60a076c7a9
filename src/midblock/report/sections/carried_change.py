"""Does the carrier sit where the models' own change is? A carving and an analysis of the same models, side by side."""

from __future__ import annotations

import math
from typing import Any

from midblock.base import LayerTable
from midblock.metrics import correlate
from midblock.report.page.chart import Chart, Panel, Section
from midblock.report.page.facts import number
from midblock.report.read.joint import Joint
from midblock.report.read.reading import Run
from midblock.report.sections.carve import DENSITY
from midblock.runs.finished import BASE
from midblock.runs.lenient import entries_of

OWN, BLOCK = "change_own", "block"
TITLE = "Does the carrier sit where the change is?"
INTRO = (
    "Above, the share of channels that the carrier keeps of each block; below, what each block of the tuned model adds "
    "to the base's states by itself (own change)."
)


def carried_change_section(run: Joint) -> Section | None:
    """The section of a page that has both; None where it has not."""
    carved = [member for member in run.runs if member.verb == "carve" and member.has(DENSITY, BLOCK)]
    analysed = [member for member in run.runs if member.verb == "analyze" and OWN in member.present]
    if not carved or not analysed:
        return None
    told, models = [], []
    for carving in carved:
        name = carving.tuned[0]
        found = [(other, tuned) for other in analysed for tuned in _same(carving, other)]
        if not found:
            told.append(f"{name}: no analysis of the model that it was carved from is on this page.")
        for other, tuned in found[:1]:
            told.append(f"{name} and the own change of {tuned}: {_rank(carving, name, other, tuned)}")
            models += [name, tuned]
    panels = (
        Panel(DENSITY, BLOCK, "bars", title="Carried channels", height=110, zero=True),
        Panel(OWN, title="Own change", mark="line", height=150, zero=True),
    )
    chart = Chart(
        "carried_change", "Carrier and own change by depth", " ".join(told), panels=panels, wide=True, thirds=True,
        models=tuple(dict.fromkeys(models)),
    )  # fmt: skip
    return Section("carried-change", TITLE, INTRO, (chart,))


def _same(carving: Run, analysis: Run) -> list[str]:
    """Names of the analysed models that the carrier was carved from."""
    theirs = {_who(entry) for entry in entries_of(carving.record, "models") if entry.get("role") != BASE}
    entries = [entry for entry in entries_of(analysis.record, "models") if entry.get("role") != BASE]
    return [str(entry.get("name")) for entry in entries if _who(entry) in theirs and entry.get("name")]


def _who(entry: Any) -> str:
    """A model's weights where they are hashed, else its reference."""
    return str(entry.get("weight_hash") or entry.get("reference") or "")


def _rank(carving: Run, name: str, analysis: Run, tuned: str) -> str:
    """The rank correlation of both curves with its interval, or why there is none."""
    rows = [
        carving.table.select(metric=DENSITY, model=name, module=BLOCK),
        analysis.table.select(metric=OWN, model=tuned, module="residual"),
    ]
    found = correlate(LayerTable.concatenate(rows)).frame
    if not len(found):
        return "no rank correlation: fewer than five blocks, or a curve that is the same everywhere."
    pair = found.iloc[0]
    value, low, high = (float(pair[column]) for column in ("spearman", "spearman_low", "spearman_high"))
    if not math.isfinite(value):
        return "no rank correlation: the curves share fewer than three blocks."
    told = f"rank correlation {number(value)} over {int(pair['n'])} blocks"
    if not (math.isfinite(low) and math.isfinite(high)) or high - low >= 2:
        return f"{told}; too few of them are independent for an interval: the evidence does not say."
    said = "they go together" if low > 0 else "they lie apart" if high < 0 else "the evidence does not say"
    return f"{told} [{number(low)}, {number(high)}]: {said}."
