"""What a swap found: every cell with its intervals, its paired change, and the shape over depth."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from midblock.base import Estimate, LayerRow, replace_atomically
from midblock.evaluation import TokenMean, difference, wilson
from midblock.evaluation.exact_match import paired_interval
from midblock.interventions.cells import Cell
from midblock.interventions.depth_shape import DepthShape, depth_shape
from midblock.interventions.swap_settings import PREFIX, SwapSettings
from midblock.trace import RowStore

HEAD_MODULES = ("base_head", "tuned_head")


@dataclass(frozen=True)
class Place:
    """One cell of the table.

    Attributes:
        body: whose blocks the model keeps where nothing is swapped: 0 the base, 1 the tuned model.
        cell: the other model's blocks in it; None for none.
        head: whose final norm and head read it: 0 the base's, 1 the tuned model's.
    """

    body: int
    cell: Cell | None
    head: int

    def key(self, kind: str) -> str:
        return f"{kind}|{self.body}|{self.cell or ''}|{self.head}"


@dataclass(frozen=True)
class Measured:
    """What was measured in one cell, prompt by prompt; `exact_match` is None where nothing was generated."""

    accuracy: TokenMean
    nll: TokenMean
    exact_match: TokenMean | None

    @classmethod
    def of(cls, store: RowStore, place: Place, seed: int) -> Measured:
        """Finish the rows of one cell."""
        rows = store.rows[place.key("tokens")].finish()
        counts = rows.values[:, 2].long()
        nll, right = (TokenMean.of(rows.index, rows.values[:, column], counts, seed) for column in (0, 1))
        answered = None
        if (key := place.key("answer")) in store.rows:
            found = store.rows[key].finish()
            answered = TokenMean.of(found.index, found.values[:, 0], torch.ones_like(found.index), seed)
        return cls(right, nll, answered)

    def levels(self) -> dict[str, Estimate]:
        nll = self.nll.interval
        found = {"accuracy": self.accuracy.interval, "nll": nll, "perplexity": nll.exponential()}
        if (match := self.exact_match) is not None:
            found["exact_match"] = Estimate(match.value, *wilson(round(float(match.sums.sum())), match.n), match.n)
        return found

    def changes(self, before: Measured, seed: int) -> dict[str, Estimate]:
        """What the swap changed, on the same prompts; exact match only where both have it."""
        found = {
            "accuracy": difference(before.accuracy, self.accuracy, seed=seed),
            "nll": difference(before.nll, self.nll, seed=seed),
        }
        if self.exact_match is not None and before.exact_match is not None:
            found["exact_match"] = _match_change(before.exact_match, self.exact_match)
        return found


@dataclass(frozen=True)
class SwapTable:
    """The whole table.

    Attributes:
        names: of the base and of the tuned model.
        blocks: L.
        found: cell by cell, in the order of measurement, references first.
    """

    names: tuple[str, str]
    blocks: int
    found: Mapping[Place, Measured]
    settings: SwapSettings

    @classmethod
    def of(
        cls, store: RowStore, names: tuple[str, str], blocks: int, places: Sequence[Place], settings: SwapSettings
    ) -> SwapTable:
        """Finish the rows of all cells."""
        found = {place: Measured.of(store, place, settings.seed) for place in places}
        return cls(names, blocks, found, settings)

    @property
    def cells(self) -> list[tuple[Place, Cell]]:
        return [(place, place.cell) for place in self.found if place.cell is not None]

    def rows(self, dataset: str) -> list[LayerRow]:
        """For the LayerTable: levels, and changes of the cells, which the references have not."""
        prefix = PREFIX[self.settings.cumulative]
        found = []
        for place, measured in self.found.items():
            layer, suffix = (self.blocks, ".reference") if place.cell is None else (self._layer(place.cell), "")
            by_metric = {f"{prefix}_{name}{suffix}": each for name, each in measured.levels().items()}
            if place.cell is not None:
                changes = self.changes[place]
                by_metric |= {f"{prefix}_{name}_change": change for name, change in changes.items()}
            for metric, each in by_metric.items():
                at = (self.names[place.body], layer, self.blocks, metric, each.value, each.n, each.low, each.high)
                found.append(LayerRow(*at, dataset=dataset, module=HEAD_MODULES[place.head]))
        return found

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        return {
            "headline": self._headline(),
            "models": [],
            "base": self.names[0],
            "tuned": self.names[1],
            "mode": self.settings.mode,
            "depth": self.settings.depth,
            "references": [
                {"body": self.names[place.body], "head": HEAD_MODULES[place.head], **_records(measured.levels())}
                for place, measured in self.found.items()
                if place.cell is None
            ],
            "cells": [self._cell_record(place, cell) for place, cell in self.cells],
            "shape": [shape.as_record() for shape in self.shapes()],
        }

    def shapes(self) -> list[DepthShape]:
        """For each host and head, whether swapping the middle does more good than swapping either end."""
        if self.settings.cumulative != "none":
            return []
        found = []
        for body, head in sorted({(place.body, place.head) for place, _ in self.cells}):
            within = [place for place, cell in self.cells if (place.body, place.head) == (body, head) and cell.blocks]
            curve = [self.found[place].accuracy for place in within]
            if len(curve) >= 3:
                found.append(depth_shape(self.names[body], HEAD_MODULES[head], curve, seed=self.settings.seed))
        return found

    def write_cells(self, path: Path) -> None:
        """Write the cells as CSV, one a line."""
        records = [self._cell_record(place, cell) for place, cell in self.cells]
        flat = [_flat(record) for record in records]
        with replace_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(flat[0]))
            writer.writeheader()
            writer.writerows(flat)

    def _layer(self, cell: Cell) -> int:
        """Where a cell stands in the LayerTable: its last block; its first where all above are swapped too."""
        return cell.first if self.settings.cumulative == "top" else cell.last

    @cached_property
    def changes(self) -> Mapping[Place, Mapping[str, Estimate]]:
        """What each cell changed against its host as it is, under the same head."""
        seed = self.settings.seed
        befores = {place: self.found[Place(place.body, None, place.head)] for place, _ in self.cells}
        return {place: self.found[place].changes(before, seed) for place, before in befores.items()}

    def _cell_record(self, place: Place, cell: Cell) -> dict[str, Any]:
        levels, changes = _records(self.found[place].levels()), _records(self.changes[place])
        for name, change in changes.items():
            levels[name] |= {"change": change["value"], "change_low": change["low"], "change_high": change["high"]}
        host, donor = self.names[place.body], self.names[1 - place.body]
        where = {"host": host, "donor": donor, "head": HEAD_MODULES[place.head]}
        return {**where, "first": cell.first, "last": cell.last, "blocks": str(cell), **levels}

    def _headline(self) -> str:
        """The cell that moves its host furthest towards the donor, by the NLL of the answers."""
        body, head = min((place.body, place.head) for place, _ in self.cells)
        own = [self.found.get(Place(which, None, which)) for which in (body, 1 - body)]
        both = own[0] is not None and own[1] is not None  # else only one head was asked for
        ends = own if both else [self.found[Place(which, None, head)] for which in (body, 1 - body)]
        whole = ends[1].nll.value - ends[0].nll.value  # type: ignore[union-attr]
        changes = {
            place: self.changes[place]["nll"] for place, _ in self.cells if (place.body, place.head) == (body, head)
        }
        best = max(changes, key=lambda place: changes[place].value * whole)
        change, host, donor = changes[best], self.names[body], self.names[1 - body]
        several = best.cell is not None and len(best.cell.blocks) > 1
        where = f"{'Blocks' if several else 'Block'} {best.cell}" if best.cell and best.cell.blocks else "The embedding"
        many = f"of {len(changes)} swaps into {host}"
        if not (change.low > 0 or change.high < 0):
            return f"None {many} clearly moves the answers' NLL; the models differ by {whole:+.3f} nats per token"
        return (
            f"{where} of {donor} move{'s' * (not several)} the answers' NLL most {many}: by {change.value:+.3f} nats "
            f"per token (95 % interval {change.low:+.3f} to {change.high:+.3f}); the models differ by {whole:+.3f}"
        )


def _match_change(before: TokenMean, after: TokenMean) -> Estimate:
    low, high = paired_interval(before.sums > 0, after.sums > 0)
    return Estimate(after.value - before.value, low, high, after.n)


def _records(found: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: each.as_record() for name, each in found.items()}


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in record.items() if not isinstance(value, dict)}
    nested = [(key, value) for key, value in record.items() if isinstance(value, dict)]
    return plain | {f"{key}_{part}": number for key, value in nested for part, number in value.items()}
