"""Accumulator of rows: one value or vector per sample, collected in any order.

Prompts are what intervals resample, so the finished statistic keeps one row a prompt (never one a token): with N
prompts, L layers and width D at most N×L×D numbers, whatever the prompts' length; on disk where they are many (`Room`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from midblock.base import MidblockError
from midblock.trace.room import Room


@dataclass(frozen=True)
class RowStatistic:
    """Finished rows, in ascending order of the samples' identities."""

    index: Int[Tensor, " N"]
    values: Shaped[Tensor, N * row]


class Rows:
    """Rows of one statistic; `update` and `finish` commute with any split of the samples.

    Rows go into one growing buffer: thousands of small tensors that live on would keep the allocator from handing back
    the large ones that every batch frees.

    Args:
        room: where it is made.
    """

    def __init__(self, room: Room | None = None) -> None:
        self._room = Room() if room is None else room
        self._index = torch.empty(0, dtype=torch.long)
        self._values = torch.empty(0)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def update(self, index: Int[Tensor, " B"], values: Shaped[Tensor, "B *row"]) -> None:
        """Add the rows of one batch; each sample may come only once."""
        stop = self._count + len(index)
        if stop > len(self._index):
            self._grow(max(stop, 2 * len(self._index), 64), values)
        self._index[self._count : stop] = index
        self._values[self._count : stop] = values
        self._count = stop

    def _grow(self, capacity: int, like: Tensor) -> None:
        with torch.inference_mode(False):  # rows that another process found are added outside
            index = torch.empty(capacity, dtype=torch.long)
        values = self._room.take((capacity, *like.shape[1:]), like.dtype)
        if self._count:
            index[: self._count], values[: self._count] = self.since(0)
            self._room.give(self._values)
        self._index, self._values = index, values

    def since(self, start: int) -> tuple[Int[Tensor, " n"], Shaped[Tensor, "n *row"]]:
        """Indices and rows from the `start`-th that came on, as views."""
        return self._index[start : self._count], self._values[start : self._count]

    def finish(self) -> RowStatistic:
        """Sort by sample.

        Raises:
            MidblockError: no rows, or a sample that was counted twice.
        """
        if not self._count:
            raise MidblockError("no samples were measured")
        index, values = self.since(0)
        order = torch.argsort(index, stable=True)
        index = index[order]
        repeated = index[1:][index[1:] == index[:-1]]
        if len(repeated):
            raise MidblockError(f"sample {int(repeated[0])} was counted twice")
        sorted_values = self._room.take(tuple(values.shape), values.dtype)
        torch.index_select(values, 0, order, out=sorted_values)
        self._room.give(self._values)
        return RowStatistic(index, sorted_values)


@dataclass
class RowStore:
    """Many accumulators by key, written to disk piece by piece so that a killed run can go on."""

    rows: dict[str, Rows] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)
    room: Room = field(default_factory=Room)

    def update(self, key: str, index: Int[Tensor, " B"], values: Shaped[Tensor, "B *row"]) -> None:
        """Add the rows of one batch to the accumulator `key`."""
        self.rows.setdefault(key, Rows(self.room)).update(index, values)

    def take_unsaved(self) -> dict[str, Tensor]:
        """Return what came since the last call, as a flat dict of tensors, and count it as saved."""
        piece: dict[str, Tensor] = {}
        for key, rows in self.rows.items():
            start = self.saved.get(key, 0)
            if start < len(rows):
                piece[f"index/{key}"], piece[f"values/{key}"] = rows.since(start)
                self.saved[key] = len(rows)
        return piece

    def taken(self) -> dict[str, Tensor]:
        """All rows, as a flat dict of tensors like those of `take_unsaved`; they share memory with the store."""
        piece: dict[str, Tensor] = {}
        for key, rows in self.rows.items():
            piece[f"index/{key}"], piece[f"values/{key}"] = rows.since(0)
        return piece

    def restore(self, piece: Mapping[str, Tensor]) -> None:
        """Take in a piece that `take_unsaved` gave, in an earlier or another process, and count it as saved."""
        for name, values in piece.items():
            kind, _, key = name.partition("/")
            if kind == "values":
                self.update(key, piece[f"index/{key}"], values)
                self.saved[key] = len(self.rows[key])

    def finish(self) -> dict[str, RowStatistic]:
        """Finish every accumulator and let go of it, so that no rows are held twice; the store is empty afterwards."""
        return {key: self.rows.pop(key).finish() for key in list(self.rows)}
