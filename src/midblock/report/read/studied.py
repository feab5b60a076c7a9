"""What the folder of a study holds for a page: its summary; the numbers of its trials stand in a table of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base import Estimate, LayerTable
from midblock.base.table_rules import MOST_BLOCKS
from midblock.report.read.reading import Run, beside_the_table
from midblock.runs.lenient import as_number, entries_of, mapping

MOST = 60  # arms that a page shows


@dataclass(frozen=True)
class ArmShown:
    """An arm on one task, as far as the summary tells it.

    Attributes:
        score: with its interval.
        chance: how likely it is the best one.
        parameters: trained ones; NaN where not told.
        against: its difference to the reference, NaN where there is none.
        p: of that, by Holm.
        published: what others report of it, NaN where nothing is known.
    """

    name: str
    score: Estimate
    chance: float
    parameters: float
    against: Estimate
    p: float
    published: float
    source: str = ""
    layers: str = ""


@dataclass(frozen=True)
class TaskShown:
    """What a study says of one task; what is broken in the summary is left out.

    Attributes:
        gains: of each arm by name, its difference to the base.
        general: tuning does not aim at it.
    """

    name: str
    metric: str
    share: bool
    general: bool
    base: Estimate
    arms: tuple[ArmShown, ...]
    gains: Mapping[str, Estimate]


def read_study(folder: Path | str) -> Run:
    """Read the folder of a study; an unfinished one may lack its summary."""
    folder = Path(folder)
    beside = beside_the_table(folder)
    depth = beside["summary"].get("total_blocks")
    known = type(depth) is int and 0 < depth <= MOST_BLOCKS
    return Run(LayerTable.from_rows([]), **beside, depth=depth if known else None)


def tasks_of(run: Run) -> list[TaskShown]:
    """The tasks that a study was tested on, the deciding one first."""
    found = (_task(entry) for entry in entries_of(run.summary, "tasks"))
    return [task for task in found if task.arms]


def _task(entry: Mapping[str, Any]) -> TaskShown:
    against = {str(each.get("arm")): each for each in entries_of(entry, "comparisons")}
    gains = {str(each.get("arm")): _difference(each) for each in entries_of(entry, "against_base")}
    arms = tuple(_arm(each, against.get(str(each.get("arm")), {})) for each in entries_of(entry, "arms")[:MOST])
    return TaskShown(
        str(entry.get("task")),
        str(entry.get("metric")),
        entry.get("kind") == "share",
        entry.get("general") is True,
        _estimate(mapping(entry, "base")),
        tuple(arm for arm in arms if math.isfinite(arm.score.value)),
        gains,
    )


def _arm(entry: Mapping[str, Any], against: Mapping[str, Any]) -> ArmShown:
    theirs = mapping(entry, "published")
    return ArmShown(
        str(entry.get("arm")),
        _estimate(entry),
        as_number(entry.get("probability_best")),
        as_number(entry.get("parameters")),
        _difference(against),
        as_number(against.get("p_holm")),
        as_number(theirs.get("value")),
        str(theirs.get("source") or ""),
        str(entry.get("layers") or ""),
    )


def _estimate(entry: Mapping[str, Any]) -> Estimate:
    return Estimate(as_number(entry.get("value")), as_number(entry.get("low")), as_number(entry.get("high")), 0)


def _difference(entry: Mapping[str, Any]) -> Estimate:
    return Estimate(as_number(entry.get("difference")), as_number(entry.get("low")), as_number(entry.get("high")), 0)
