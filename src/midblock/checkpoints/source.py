"""Source: a tensor's value as what lies on disk and a change on top, computed only where and when it is wanted.

W' = f ⊙ (W + s B A): W is a view of a mapped file, or what an adapter puts in its place; B A an adapter's low-rank
change, f DoRA's factor for each output, m / ‖W + s B A‖ (Liu et al. 2024). Float64; nothing is built but the rows asked
for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from midblock.checkpoints.low_rank import Delta, LowRankDelta, StackedDelta
from midblock.checkpoints.pieces import box
from midblock.checkpoints.projections import Region

ROWS = 1 << 22  # entries computed at a time where two tensors are compared or a norm is taken


@dataclass(frozen=True)
class Source:
    """A tensor's value.

    Attributes:
        stored: as it lies on disk, or what an adapter puts in its place.
        delta: a low-rank change on top, or None.
        factor: what the sum is multiplied by, (m, 1) or (1, n); None for 1.
    """

    stored: Shaped[Tensor, "*shape"]
    delta: Delta | None = None
    factor: Float64[Tensor, "*sides"] | None = None

    @property
    def changed(self) -> bool:
        """Whether there is anything to compute."""
        return self.delta is not None or self.factor is not None

    @property
    def low_rank(self) -> LowRankDelta | None:
        """The change, where it is one low-rank matrix and nothing else."""
        return self.delta if isinstance(self.delta, LowRankDelta) and self.factor is None else None

    @property
    def flat(self) -> Shaped[Tensor, " n"]:
        return self.stored.reshape(-1)

    def value(self) -> Shaped[Tensor, "*shape"]:
        """The whole tensor: as stored where nothing is on top, else float64."""
        if self.delta is None:
            return self.stored if self.factor is None else self.stored.double() * self.factor
        summed = self.stored.double() + self.delta.dense()
        return summed if self.factor is None else summed * self.factor

    def fill(self, buffer: Float64[Tensor, " n"], start: int) -> None:
        """Write the entries from `start` on into `buffer`; with a change both must be whole rows."""
        buffer.copy_(self.flat[start : start + len(buffer)])
        if not self.changed:
            return
        width = self.stored.shape[-1]
        rows = slice(start // width, (start + len(buffer)) // width)
        matrix = buffer.view(-1, width)
        if self.delta is not None:
            matrix.add_(self.delta.dense_rows(rows))
        if self.factor is not None:
            matrix.mul_(self.factor if self.factor.shape[0] == 1 else self.factor[rows])

    def cut(self, region: Region) -> Source:
        """The value of a box of it."""
        if not region:
            return self
        stored = box(self.stored, region)
        if not self.changed:
            return Source(stored)
        delta: Delta | None = self.delta
        if isinstance(delta, StackedDelta) and isinstance(region[0], int):
            delta, region = delta.experts[region[0]], region[1:]
        rows, columns = (slice(*side) for side in region[-2:] if isinstance(side, tuple))
        if isinstance(delta, StackedDelta):
            first, last = region[0] if isinstance(region[0], tuple) else (0, 0)
            return Source(stored, StackedDelta(tuple(each.cut(rows, columns) for each in delta.experts[first:last])))
        factor = self.factor
        if factor is not None:
            factor = factor[:, columns] if factor.shape[0] == 1 else factor[rows]
        return Source(stored, None if delta is None else delta.cut(rows, columns), factor)

    def matrices(self) -> Iterator[Source]:
        """The value as matrices: itself, or one for each expert."""
        if self.stored.ndim <= 2:
            yield self
            return
        for index in range(self.stored.shape[0]):
            yield self.cut((index, *((0, side) for side in self.stored.shape[1:])))


def exact_rows(source: Source, entries: int = ROWS) -> Iterator[tuple[slice, Float64[Tensor, "rows *rest"]]]:
    """A tensor's value in float64, some of its leading rows at a time."""
    stored = source.stored
    if stored.ndim == 0:
        return
    step = max(1, entries // max(1, stored[0].numel()))
    for first in range(0, stored.shape[0], step):
        rows = slice(first, min(first + step, stored.shape[0]))
        buffer = torch.empty(stored[rows].numel(), dtype=torch.float64)
        source.fill(buffer, first * max(1, stored[0].numel()))
        yield rows, buffer.view(stored[rows].shape)


def dora_factor(start: Source, magnitude: Float64[Tensor, " m"], *, transposed: bool) -> Float64[Tensor, "*sides"]:
    """DoRA's factor for each output, m / ‖W + s B A‖.

    Args:
        start: W + s B A, as it is stored.
        magnitude: m.
        transposed: outputs are columns.

    Returns:
        (m, 1), transposed (1, m): it multiplies the weight as it is stored.
    """
    across = 0 if transposed else 1
    squared = torch.zeros(magnitude.shape, dtype=torch.float64)
    for rows, part in exact_rows(start):
        squares = part.square().sum(across)
        if transposed:
            squared += squares
        else:
            squared[rows] = squares
    return (magnitude / squared.sqrt()).unsqueeze(across)


def same_values(first: Source, second: Source) -> bool:
    """Whether two tensors have the same values, as they would be stored."""
    if first.stored.shape != second.stored.shape:
        return False
    kind = first.stored.dtype
    rows = zip(exact_rows(first), exact_rows(second), strict=True)
    return all(torch.equal(a.to(kind), b.to(kind)) for (_, a), (_, b) in rows)
