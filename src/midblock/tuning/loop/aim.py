"""What a verb trains for: the part of a course in which `tune` and `flow` differ, and what that part is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base import LayerRow
from midblock.tuning.place.gradients import Gradients


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a training came to.

    Attributes:
        lines: of `log.jsonl`.
        planned: what `plan.json` holds.
        moved: rows of how far each weight moved.
        blocks: L.
        compared: how many frozen tensors were found unchanged.
        notes: what a reader must know; more may be added.
    """

    lines: tuple[Mapping[str, Any], ...]
    planned: Mapping[str, Any]
    moved: Sequence[LayerRow]
    blocks: int
    compared: int
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a verb trains for.

    Attributes:
        target: the folder that the result is written to.
        results: rows for the table, and what `summary.json` holds; asked in the main process only.
        card: README.md beside the result, from `run.json` and `plan.json`.
        announce: given `plan.json` before training starts, in the main process.
        on_gradients: looks at the gradients before each step of the optimiser, in every process.
    """

    target: Path
    results: Callable[[Learned], tuple[Sequence[LayerRow], Mapping[str, Any]]]
    card: Callable[[Mapping[str, Any], Mapping[str, Any]], str] = lambda record, planned: ""
    announce: Callable[[Mapping[str, Any]], None] = lambda planned: None
    on_gradients: Callable[[Gradients], None] = lambda gradients: None
