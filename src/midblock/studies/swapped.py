"""A swap run's results as numbers: what each host reached with which blocks of the other model put in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from midblock.base import Estimate
from midblock.runs.finished import Finished
from midblock.runs.lenient import as_number, entries_of, mapping

MEASURES = ("accuracy", "nll", "perplexity", "exact_match")
HEADS = ("base_head", "tuned_head")
SEPARATE, CUMULATIVE = ("segments", "each"), ("bottom", "top")  # ways to swap


@dataclass(frozen=True)
class Level:
    """What was reached, and what that changed against the host with nothing swapped (NaN where not given).

    Attributes:
        of_all: the change, with an interval that holds for all cells of a host and head at once.
    """

    value: Estimate
    change: Estimate
    of_all: Estimate


@dataclass(frozen=True)
class Swapped:
    """One swap, or (with no donor) a model as it is.

    Attributes:
        first, last: the swapped blocks, −1 the embedding.
        added: of a cumulative swap those that the next smaller one has not; else all of them.
        levels: measure → what was reached.
    """

    host: str
    head: str
    levels: Mapping[str, Level]
    donor: str = ""
    first: int = 0
    last: int = 0
    added: tuple[int, int] = (0, 0)

    def change(self, measure: str) -> Estimate:
        """Of a measure, against the host; NaN where it is not known."""
        return self.levels[measure].change if measure in self.levels else Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Swaps:
    """The swaps of a run and the models as they are, read from its summary; what is broken in it is left out.

    Attributes:
        mode: "segments", "each", "bottom" or "top".
        shape: verdicts on curves by depth, as the summary holds them.
    """

    mode: str
    cells: Sequence[Swapped]
    references: Sequence[Swapped]
    shape: Sequence[Mapping[str, Any]]

    @property
    def hosts(self) -> list[str]:
        return list(dict.fromkeys(cell.host for cell in self.cells))

    @property
    def measures(self) -> list[str]:
        return [key for key in MEASURES if any(key in cell.levels for cell in self.cells)]

    def donor(self, host: str) -> str:
        return next((cell.donor for cell in self.cells if cell.host == host and cell.donor), "the other model")

    def reference(self, body: str, head: str, measure: str) -> float:
        """What a model reaches with nothing swapped, NaN where it is not known."""
        found = (cell for cell in self.references if (cell.host, cell.head) == (body, head) and measure in cell.levels)
        return next((cell.levels[measure].value.value for cell in found), math.nan)


def swaps_of(run: Finished) -> Swaps | None:
    """The swaps of a run; None where its summary holds none."""
    cells = _known(map(_cell, entries_of(run.summary, "cells")))
    if not cells:
        return None
    mode = str(run.summary.get("mode") or "segments")
    references = _known(map(_reference, entries_of(run.summary, "references")))
    shape = [entry for entry in entries_of(run.summary, "shape") if math.isfinite(as_number(entry.get("contrast")))]
    return Swaps(mode, _added(cells) if mode in CUMULATIVE else cells, references, shape)


def _known(found: Iterable[Swapped | None]) -> list[Swapped]:
    return [cell for cell in found if cell is not None]


def _cell(entry: Mapping[str, Any]) -> Swapped | None:
    first, last = entry.get("first"), entry.get("last")
    levels = _levels(entry)
    host, head, donor = (str(entry.get(key) or "") for key in ("host", "head", "donor"))
    if type(first) is not int or type(last) is not int or last < first or head not in HEADS or not levels:
        return None
    return Swapped(host, head, levels, donor, first, last, (first, last))


def _reference(entry: Mapping[str, Any]) -> Swapped | None:
    levels = _levels(entry)
    return Swapped(str(entry.get("body") or ""), str(entry.get("head") or ""), levels) if levels else None


def _levels(entry: Mapping[str, Any]) -> dict[str, Level]:
    found = {key: _level(mapping(entry, key)) for key in MEASURES}
    return {key: level for key, level in found.items() if math.isfinite(level.value.value)}


def _level(found: Mapping[str, Any]) -> Level:
    ends = (("value", "low", "high"), ("change", "change_low", "change_high"))
    return Level(*(_estimate(found, *each) for each in (*ends, ("change", "change_low_of_all", "change_high_of_all"))))


def _estimate(found: Mapping[str, Any], value: str, low: str, high: str) -> Estimate:
    return Estimate(as_number(found.get(value)), as_number(found.get(low)), as_number(found.get(high)), 0)


def _added(cells: Sequence[Swapped]) -> list[Swapped]:
    """Tell of each cumulative swap which blocks the next smaller one has not."""
    return [replace(cell, added=_beyond(cell, [other for other in cells if _inside(other, cell)])) for cell in cells]


def _beyond(cell: Swapped, smaller: Sequence[Swapped]) -> tuple[int, int]:
    largest = max(smaller, key=lambda other: other.last - other.first, default=None)
    if largest is None:
        return cell.first, cell.last
    if largest.first == cell.first:
        return largest.last + 1, cell.last
    return cell.first, largest.first - 1


def _inside(inner: Swapped, outer: Swapped) -> bool:
    """Of one host and head, smaller, and with the same bottom or the same top."""
    alike = (inner.host, inner.head) == (outer.host, outer.head)
    shares_end = inner.first == outer.first or inner.last == outer.last
    return alike and shares_end and inner.last - inner.first < outer.last - outer.first and inner.first >= outer.first
