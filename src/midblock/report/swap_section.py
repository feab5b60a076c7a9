"""The figure of swapped blocks: what each host reaches with the other model's blocks put in, and the verdict on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midblock.report.chart import Chart, Section
from midblock.report.facts import number
from midblock.report.island import numbers
from midblock.report.joint_run import prompts_of
from midblock.report.reading import BASE, Run, mapping
from midblock.report.training_log import as_number

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
ESTIMATE = ("value", "low", "high", "change", "change_low", "change_high")


@dataclass(frozen=True)
class Cell:
    """One swap, or (with `body` and nothing swapped) one of the references.

    Attributes:
        first, last: the swapped blocks, −1 the embedding.
        drawn: the blocks it is drawn over: all of them, or only those that a cumulative swap added last.
        measures: measure → value, low, high, change, change_low, change_high, NaN where not given.
    """

    host: str
    head: str
    measures: Mapping[str, tuple[float, ...]]
    donor: str = ""
    first: int = 0
    last: int = 0
    drawn: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Swaps:
    """The cells and references of a swap run, read from its summary; what is broken in it is left out."""

    mode: str
    cells: Sequence[Cell]
    references: Sequence[Cell]
    shape: Sequence[Mapping[str, Any]]

    @property
    def hosts(self) -> list[str]:
        return list(dict.fromkeys(cell.host for cell in self.cells))

    @property
    def measures(self) -> list[str]:
        return [key for key in MEASURES if any(key in cell.measures for cell in self.cells)]

    def donor(self, host: str) -> str:
        return next((cell.donor for cell in self.cells if cell.host == host and cell.donor), "the other model")

    def title(self, host: str) -> str:
        return f"{host} with blocks of {self.donor(host)}"

    def reference(self, body: str, head: str, measure: str) -> float:
        """What a model reaches with nothing swapped, NaN where it is not known."""
        found = [
            cell for cell in self.references if (cell.host, cell.head) == (body, head) and measure in cell.measures
        ]
        return found[0].measures[measure][0] if found else math.nan


def swaps_of(run: Run) -> Swaps | None:
    """The swap run's cells; None where the summary holds none."""
    cells = [cell for entry in _entries(run, "cells") if (cell := _cell(entry)) is not None]
    if not cells:
        return None
    mode = str(run.summary.get("mode") or "segments")
    references = [cell for entry in _entries(run, "references") if (cell := _reference(entry)) is not None]
    shape = [entry for entry in _entries(run, "shape") if math.isfinite(as_number(entry.get("contrast")))]
    return Swaps(mode, _added(cells) if mode in ("bottom", "top") else cells, references, shape)


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
    """What the script draws from; an estimate is a list in the order of `ESTIMATE`."""
    return {
        "mode": swaps.mode,
        "measures": [{"key": key, "title": MEASURES[key][0], "unit": MEASURES[key][1]} for key in swaps.measures],
        "heads": HEADS,
        "hosts": [{"name": host, "donor": swaps.donor(host), "title": swaps.title(host)} for host in swaps.hosts],
        "cells": [_written(cell) | {"blocks": [cell.first, cell.last], "drawn": cell.drawn} for cell in swaps.cells],
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
        f"{MEASURES.get(metric, (metric,))[0]} by depth, {swaps.title(host)}: "
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


def _entries(run: Run, key: str) -> list[Mapping[str, Any]]:
    found = run.summary.get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _cell(entry: Mapping[str, Any]) -> Cell | None:
    first, last = entry.get("first"), entry.get("last")
    measures = _measures(entry)
    host, head, donor = (str(entry.get(key) or "") for key in ("host", "head", "donor"))
    if type(first) is not int or type(last) is not int or last < first or head not in HEADS or not measures:
        return None
    return Cell(host, head, measures, donor, first, last, (first, last))


def _reference(entry: Mapping[str, Any]) -> Cell | None:
    measures = _measures(entry)
    return Cell(str(entry.get("body") or ""), str(entry.get("head") or ""), measures) if measures else None


def _measures(entry: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    found = {key: tuple(as_number(mapping(entry, key).get(part)) for part in ESTIMATE) for key in MEASURES}
    return {key: values for key, values in found.items() if math.isfinite(values[0])}


def _added(cells: Sequence[Cell]) -> list[Cell]:
    """Draw each cumulative swap over the blocks that it has and the next smaller one has not."""
    drawn = []
    for cell in cells:
        inner = [o for o in cells if (o.host, o.head) == (cell.host, cell.head) and _inside(o, cell)]
        largest = max(inner, key=lambda other: other.last - other.first, default=None)
        first, last = cell.first, cell.last
        if largest is not None:
            first, last = (largest.last + 1, last) if largest.first == first else (first, largest.first - 1)
        drawn.append(Cell(cell.host, cell.head, cell.measures, cell.donor, cell.first, cell.last, (first, last)))
    return drawn


def _inside(inner: Cell, outer: Cell) -> bool:
    """Smaller, and with the same bottom or the same top."""
    shares_end = inner.first == outer.first or inner.last == outer.last
    return shares_end and inner.last - inner.first < outer.last - outer.first and inner.first >= outer.first


def _written(cell: Cell) -> dict[str, Any]:
    return {"host": cell.host, "head": cell.head} | {key: numbers(values) for key, values in cell.measures.items()}
