"""What a swap found: every mix with its intervals, its paired change, and the shape over depth."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from midblock.base import Estimate, LayerRow, replace_atomically
from midblock.base.quoting import cell as csv_cell
from midblock.evaluation import differences
from midblock.interventions.swap.cells import Cell
from midblock.interventions.swap.depth_shape import DepthShape, depth_shape
from midblock.interventions.swap.headline import headline
from midblock.interventions.swap.mix import Mix, MixScores
from midblock.interventions.swap.settings import PREFIX, SwapSettings

HEAD_MODULES = ("base_head", "tuned_head")


@dataclass(frozen=True)
class SwapTable:
    """The whole table.

    Attributes:
        names: of the base and of the tuned model.
        blocks: L.
        found: mix by mix, in the order of measurement, references first.
    """

    names: tuple[str, str]
    blocks: int
    found: Mapping[Mix, MixScores]
    settings: SwapSettings

    @property
    def cells(self) -> list[tuple[Mix, Cell]]:
        return [(mix, mix.cell) for mix in self.found if mix.cell is not None]

    def rows(self, dataset: str) -> list[LayerRow]:
        """For the LayerTable: levels, and changes of the cells, which the references have not."""
        prefix = PREFIX[self.settings.cumulative]
        found = []
        for mix, scored in self.found.items():
            layer, suffix = (self.blocks, ".reference") if mix.cell is None else (self._layer(mix.cell), "")
            by_metric = {f"{prefix}_{name}{suffix}": each for name, each in scored.levels().items()}
            if mix.cell is not None:
                changes = self.changes[mix]
                by_metric |= {f"{prefix}_{name}_change": change for name, change in changes.items()}
            for metric, each in by_metric.items():
                at = (self.names[mix.body], layer, self.blocks, metric, each.value, each.n, each.low, each.high)
                found.append(LayerRow(*at, dataset=dataset, module=HEAD_MODULES[mix.head]))
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
                {"body": self.names[mix.body], "head": HEAD_MODULES[mix.head], **_records(scored.levels())}
                for mix, scored in self.found.items()
                if mix.cell is None
            ],
            "cells": [self._cell_record(mix, cell) for mix, cell in self.cells],
            "shape": [shape.as_record() for shape in self.shapes()],
        }

    def shapes(self) -> list[DepthShape]:
        """For each host and head, whether swapping the middle does more good than swapping either end."""
        if self.settings.cumulative != "none":
            return []
        found = []
        for body, head in sorted({(mix.body, mix.head) for mix, _ in self.cells}):
            within = [mix for mix, cell in self.cells if (mix.body, mix.head) == (body, head) and cell.blocks]
            curve = [self.found[mix].accuracy for mix in within]
            if len(curve) >= 3:
                found.append(depth_shape(self.names[body], HEAD_MODULES[head], curve, seed=self.settings.seed))
        return found

    def write_cells(self, path: Path) -> None:
        """Write the cells as CSV, one a line."""
        records = [self._cell_record(mix, cell) for mix, cell in self.cells]
        flat = [_flat(record) for record in records]
        with replace_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(flat[0]))
            writer.writeheader()
            writer.writerows(flat)

    def _layer(self, cell: Cell) -> int:
        """Where a cell stands in the LayerTable: its last block; its first where all above are swapped too."""
        return cell.first if self.settings.cumulative == "top" else cell.last

    @cached_property
    def changes(self) -> Mapping[Mix, Mapping[str, Estimate]]:
        """What each cell changed against its host as it is, under the same head."""
        seed = self.settings.seed
        befores = {mix: self.found[Mix(mix.body, None, mix.head)] for mix, _ in self.cells}
        return {mix: self.found[mix].changes(before, seed) for mix, before in befores.items()}

    @cached_property
    def together(self) -> Mapping[Mix, Estimate]:
        """The change of NLL of each cell, with intervals that hold for all cells of a host and head at once."""
        found: dict[Mix, Estimate] = {}
        for body, head in sorted({(mix.body, mix.head) for mix, _ in self.cells}):
            mixes = [mix for mix, _ in self.cells if (mix.body, mix.head) == (body, head)]
            before = self.found[Mix(body, None, head)].nll
            pairs = [(before, self.found[mix].nll) for mix in mixes]
            found |= zip(mixes, differences(pairs, seed=self.settings.seed, together=True), strict=True)
        return found

    def _cell_record(self, mix: Mix, cell: Cell) -> dict[str, Any]:
        levels, changes = _records(self.found[mix].levels()), _records(self.changes[mix])
        for name, change in changes.items():
            levels[name] |= {"change": change["value"], "change_low": change["low"], "change_high": change["high"]}
        together = self.together[mix].as_record()
        levels["nll"] |= {"change_low_of_all": together["low"], "change_high_of_all": together["high"]}
        host, donor = self.names[mix.body], self.names[1 - mix.body]
        where = {"host": host, "donor": donor, "head": HEAD_MODULES[mix.head]}
        return {**where, "first": cell.first, "last": cell.last, "blocks": str(cell), **levels}

    def _headline(self) -> str:
        """The first host's swaps in a sentence, all that it compares read by one head: the host's own, if measured."""
        host = min(mix.body for mix, _ in self.cells)
        heads = {mix.head for mix, _ in self.cells if mix.body == host}
        head = host if host in heads else min(heads)
        changes = {cell: self.together[mix] for mix, cell in self.cells if (mix.body, mix.head) == (host, head)}
        before, after = (self.found[Mix(body, None, head)].nll.value for body in (host, 1 - host))
        return headline(self.names[host], self.names[1 - host], self.names[head], changes, after - before)


def _records(found: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: each.as_record() for name, each in found.items()}


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: csv_cell(value) if isinstance(value, str) else value
             for key, value in record.items() if not isinstance(value, dict)}  # fmt: skip
    nested = [(key, value) for key, value in record.items() if isinstance(value, dict)]
    return plain | {f"{key}_{part}": number for key, value in nested for part, number in value.items()}
