"""What the folder of an erasing run holds for a page: its summary; any of it may be broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base import Estimate, LayerTable
from midblock.report.read.reading import Run, beside_the_table
from midblock.runs.lenient import as_number, entries_of, mapping

KINDS = {"test": "like the training's", "reworded": "in other words", "other": "on other topics"}
MOST_CELLS = 12


@dataclass(frozen=True)
class CellShown:
    """A cell, as far as the summary tells it.

    Attributes:
        entry: its record.
    """

    title: str
    entry: Mapping[str, Any]

    def effect(self, kind: str, name: str) -> Estimate:
        """`before`, `after` or `change` on a kind of prompts."""
        return estimate_of(mapping(mapping(mapping(self.entry, "judged"), kind), name))

    def null(self, name: str) -> Estimate:
        """The rate with the `random` prompt, or with that of the `start`."""
        return estimate_of(mapping(mapping(mapping(self.entry, "nulls"), name), "after"))

    def divergence(self, reference: str, kind: str) -> Estimate:
        """KL from the `tuned` model or the `base` on a kind of prompts."""
        return estimate_of(mapping(mapping(self.entry, f"kl_{reference}"), kind))

    @property
    def curves(self) -> list[list[tuple[float, float]]]:
        """By start, steps and J on held-out prompts."""
        return [
            [
                (as_number(point[0]), as_number(point[2]))
                for point in points
                if isinstance(point, list) and len(point) > 2
            ]
            for start in entries_of(self.entry, "starts")
            if isinstance(points := start.get("curve"), list)
        ]


def read_erased(folder: Path | str) -> Run:
    """Read the folder of an erasing run; an unfinished one may lack its summary."""
    return Run(LayerTable.from_rows([]), **beside_the_table(Path(folder)))


def cells_of(run: Run) -> list[CellShown]:
    """The cells of a run."""
    return [CellShown(str(each.get("title")), each) for each in entries_of(run.summary, "cells")[:MOST_CELLS]]


def hue_of(run: Run, cell: CellShown) -> int:
    """A cell's colour: that of its model, by its place among the models; of one that is not there, the first's."""
    names = [str(each.get("name")) for each in entries_of(run.summary, "plain")]
    model = str(cell.entry.get("model"))
    return names.index(model) if model in names else 1


def kinds_of(run: Run) -> list[str]:
    """The kinds of prompts that were judged."""
    first = next(iter(entries_of(run.summary, "cells")), {})
    return [kind for kind in KINDS if kind in mapping(first, "judged")]


def estimate_of(entry: Mapping[str, Any]) -> Estimate:
    """A value with its interval; NaN where it is not told."""
    return Estimate(as_number(entry.get("value")), as_number(entry.get("low")), as_number(entry.get("high")), 0)
