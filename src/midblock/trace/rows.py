"""Accumulator of rows: one value or vector per sample, collected in any order, merged from anywhere.

Prompts are what intervals resample, so the finished statistic keeps one row a prompt (never one a token): with N
prompts, L layers and width D at most N×L×D numbers, whatever the prompts' length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midblock.base import MidblockError


@dataclass(frozen=True)
class RowStatistic:
    """Finished rows, in ascending order of the samples' identities."""

    index: Int[Tensor, " N"]
    values: Float[Tensor, N * row]


@dataclass
class Rows:
    """Rows of one statistic; `update`, `merge` and `finish` commute with any split of the samples."""

    index: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def update(self, index: Int[Tensor, " B"], values: Float[Tensor, B * row]) -> None:
        """Add the rows of one batch; each sample may come only once."""
        self.index.append(index)
        self.values.append(values)

    def merge(self, other: Rows) -> Rows:
        """Take over the rows another process or run collected."""
        return Rows(self.index + other.index, self.values + other.values)

    def finish(self) -> RowStatistic:
        """Sort by sample.

        Raises:
            MidblockError: no rows, or a sample that was counted twice.
        """
        if not self.index:
            raise MidblockError("no samples were measured")
        index = torch.cat(self.index)
        order = torch.argsort(index, stable=True)
        index = index[order]
        if bool((index[1:] == index[:-1]).any()):
            twice = int(index[1:][index[1:] == index[:-1]][0])
            raise MidblockError(f"sample {twice} was counted twice")
        return RowStatistic(index, torch.cat(self.values)[order])


@dataclass
class RowStore:
    """Many accumulators by key, written to disk piece by piece so that a killed run can go on."""

    rows: dict[str, Rows] = field(default_factory=dict)
    unsaved: dict[str, Rows] = field(default_factory=dict)

    def update(self, key: str, index: Int[Tensor, " B"], values: Float[Tensor, B * row]) -> None:
        self.unsaved.setdefault(key, Rows()).update(index, values)

    def take_unsaved(self) -> dict[str, Tensor]:
        """Return what came since the last call as a flat dict of tensors, and keep it as saved."""
        piece: dict[str, Tensor] = {}
        for key, rows in self.unsaved.items():
            piece[f"index/{key}"] = torch.cat(rows.index)
            piece[f"values/{key}"] = torch.cat(rows.values)
        self.restore(piece)
        self.unsaved = {}
        return piece

    def restore(self, piece: Mapping[str, Tensor]) -> None:
        """Take in a piece that `take_unsaved` gave, here or in an earlier process."""
        for name, values in piece.items():
            kind, _, key = name.partition("/")
            if kind == "values":
                self.rows.setdefault(key, Rows()).update(piece[f"index/{key}"], values)

    def finish(self) -> dict[str, RowStatistic]:
        self.take_unsaved()
        return {key: rows.finish() for key, rows in self.rows.items()}
