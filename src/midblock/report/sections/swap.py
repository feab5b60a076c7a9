"""The figure of swapped blocks: what each host reaches with the other model's blocks put in, and the verdict on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from midblock.report.page.chart import Chart, Section
from midblock.report.page.facts import number
from midblock.report.page.island import numbers
from midblock.report.read.joint import Joint, labels_of, prompts_of
from midblock.report.read.reading import Run
from midblock.runs.finished import BASE
from midblock.runs.lenient import as_number
from midblock.studies.swapped import Level, Swapped, Swaps, swaps_of

MEASURES: Mapping[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", "share of answer tokens"),
    "nll": ("NLL", "nats per token"),
    "perplexity": ("Perplexity", ""),
    "exact_match": ("Exact match", "share of answers"),
}
HEADS: Mapping[str, str] = {"base_head": "base head", "tuned_head": "tuned head"}
TITLES: Mapping[str, str] = {
    "segments": "Swapped one depth segment at a time",
    "each": "Swapped one block at a time",
    "bottom": "Swapped cumulatively, from the bottom up",
    "top": "Swapped cumulatively, from the top down",
}
# What a verdict means: tuned blocks in the base bring the gain, base blocks in the tuned model take it away.
GAINS: Mapping[str, str] = {
    "inverted U": "an inverted U: blocks in the middle help most",
    "U": "a U: blocks in the middle help least",
    "rising": "rises with depth: upper blocks help most",
    "falling": "falls with depth: lower blocks help most",
}
LOSSES: Mapping[str, str] = {
    "inverted U": "an inverted U: taking out the middle hurts least",
    "U": "a U: taking out the middle hurts most",
    "rising": "rises with depth: taking out lower blocks hurts most",
    "falling": "falls with depth: taking out upper blocks hurts most",
}
UNDECIDED = "undecided"
TESTED = (
    "In brackets: the middle minus the better of the two ends. A verdict needs the middle to differ from both ends, "
    "each tested separately, or it is undecided; below eight prompts it always is."
)


def swap_sections(run: Joint) -> list[Section]:
    """A section for each swap run; of several, each under its folder's name."""
    found = []
    for place, (member, label) in enumerate(zip(run.runs, labels_of(run.runs), strict=True)):
        section = swap_section(member)
        if section is None:
            continue
        if place:
            charts = tuple(replace(chart, id=f"{chart.id}-{place + 1}") for chart in section.charts)
            section = replace(section, id=f"{section.id}-{place + 1}", charts=charts)
        found.append(replace(section, title=f"{section.title} · {label}") if len(run.runs) > 1 else section)
    return found


def swap_section(run: Run) -> Section | None:
    """The section of a swap run; None where the summary holds no swapped cells."""
    swaps = swaps_of(run)
    if swaps is None:
        return None
    title = TITLES.get(swaps.mode, "Blocks swapped between the models")
    chart = Chart(
        "swap", title, _caption(swaps), "spans", modes=tuple(swaps.measures), wide=True, data=swap_data(swaps)
    )
    intro = (
        "Blocks of one model are put into the other, everything else stays. Where a span leaves the line of its host, "
        "those blocks carry a part of the difference between the models."
    )
    found = prompts_of(run, "swap_")
    intro += f" Measured on {found}." if found else ""
    return Section("swap", "Swapped blocks", intro, (chart,))


def swap_data(swaps: Swaps) -> dict[str, Any]:
    """What the script draws from; an estimate is a list of value, low, high, change, and its low and high."""
    return {
        "mode": swaps.mode,
        "measures": [{"key": key, "title": MEASURES[key][0], "unit": MEASURES[key][1]} for key in swaps.measures],
        "heads": HEADS,
        "hosts": [{"name": host, "donor": swaps.donor(host), "title": title_of(swaps, host)} for host in swaps.hosts],
        "cells": [_written(cell) | {"blocks": [cell.first, cell.last], "drawn": cell.added} for cell in swaps.cells],
        "references": [_written(cell) for cell in swaps.references],
    }


def verdicts(swaps: Swaps) -> list[str]:
    """A sentence for each host and measure whose curve was tested for its shape, the heads of one verdict together."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for entry in swaps.shape:
        host, head, metric = (str(entry.get(key) or "") for key in ("host", "head", "metric"))
        verdict = (GAINS if host == BASE else LOSSES).get(str(entry.get("verdict")), UNDECIDED)
        said = _contrast(entry, HEADS.get(head, head), verdict != UNDECIDED)
        found.setdefault((host, metric), {}).setdefault(verdict, []).append(said)
    return [
        f"{MEASURES.get(metric, (metric,))[0]} by depth, {title_of(swaps, host)}: "
        + "; ".join(f"{verdict} ({', '.join(said)})" for verdict, said in parts.items())
        + "."
        for (host, metric), parts in found.items()
    ]


def _contrast(entry: Mapping[str, Any], head: str, decided: bool) -> str:
    """The contrast; its interval is not the test, so that beside "undecided" it would mislead."""
    value, low, high = (as_number(entry.get(key)) for key in ("contrast", "low", "high"))
    interval = f" [{number(low)}, {number(high)}]" if decided and math.isfinite(low) and math.isfinite(high) else ""
    return f"{'+' if value > 0 else ''}{number(value)}{interval} with the {head}"


def _caption(swaps: Swaps) -> str:
    if swaps.mode in ("bottom", "top"):
        reach = "from the bottom up to there" if swaps.mode == "bottom" else "from the output down to there"
        start = (
            f"Each step covers the blocks added last, at the height of what the host reaches with all {reach} swapped."
        )
    else:
        start = "Each span covers the blocks swapped together, at the height of what the host then reaches."
    rest = "Boxes are 95 % intervals over prompts; lines run where nothing is swapped."
    said = verdicts(swaps)
    return " ".join([start, rest, *said, *([TESTED] if said else [])])


def title_of(swaps: Swaps, host: str) -> str:
    return f"{host} with blocks of {swaps.donor(host)}"


def _written(cell: Swapped) -> dict[str, Any]:
    return {"host": cell.host, "head": cell.head} | {key: _estimate(level) for key, level in cell.levels.items()}


def _estimate(level: Level) -> list[float | None]:
    """Value, low, high, and the same of the change."""
    return numbers([each for part in (level.value, level.change) for each in (part.value, part.low, part.high)])
