"""Entries: some rows and columns of a parameter with the values that stand there; what a carrier holds of a weight.

A mask is 0 or 1, so a masked weight is the tuned one's value where its row and its column are kept, and the base's
elsewhere: a submatrix, named by one index vector for each dimension. Values are kept, not differences: putting them in
place is exact to the bit. Cost: placing copies the tensor once and writes the kept entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from midblock.checkpoints.projections import Region


@dataclass(frozen=True)
class Entries:
    """Kept rows × kept columns of a parameter as it is stored in memory; of a vector, kept entries.

    Attributes:
        indices: for each dimension the kept indices, ascending; None for all of them.
        values: what stands there, of the kept shape.
    """

    indices: tuple[Int64[Tensor, " _"] | None, ...]
    values: Shaped[Tensor, "*kept"]

    @property
    def count(self) -> int:
        """How many entries."""
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        """Bytes on disk: values, and indices of four bytes."""
        return self.values.nbytes + sum(4 * len(index) for index in self.indices if index is not None)

    @classmethod
    def of(cls, tensor: Shaped[Tensor, "*shape"], kept: Sequence[Tensor | None]) -> Entries:
        """Take the entries of a tensor that are kept.

        Args:
            kept: for each dimension its indices, ascending, or which are kept (a BoolTensor); None for all.

        Example:
            >>> Entries.of(torch.arange(6.0).view(2, 3), (None, torch.tensor([True, False, True]))).values
            tensor([[0., 2.],
                    [3., 5.]])
        """
        indices = tuple(_index(each, side) for each, side in zip(kept, tensor.shape, strict=True))
        return cls(indices, _taken(tensor.detach(), indices))

    def taken(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*kept"]:
        """What stands in the same places of another tensor of the parameter's shape; a copy."""
        return _taken(tensor, self.indices)

    def place(self, base: Shaped[Tensor, "*shape"], scale: float = 1.0) -> Shaped[Tensor, "*shape"]:
        """The parameter with the entries in it: base + scale · (values − base) where they are.

        Args:
            base: the parameter; it stays as it is.
            scale: at 1 the values themselves, at 0 the base's.

        Returns:
            A new tensor, of the wider of both types, so that neither is rounded.
        """
        made = base.to(torch.promote_types(base.dtype, self.values.dtype), copy=True)
        self.put(made, self.scaled(base, scale))
        return made

    def scaled(self, base: Shaped[Tensor, "*shape"], scale: float) -> Shaped[Tensor, "*kept"]:
        """base + scale · (values − base), in float64; at 1 the values as they are."""
        if scale == 1.0:
            return self.values
        start = self.taken(base).double()
        return start + scale * (self.values.to(start.device).double() - start)

    def put(self, target: Shaped[Tensor, "*shape"], values: Shaped[Tensor, "*kept"]) -> None:
        """Write values into the places of a tensor, rounded to its type."""
        values = values.to(target.device, target.dtype)
        if target.ndim > 2 and target.is_contiguous():
            flat = Entries(self.indices, values).as_matrix(target.shape)
            flat.put(target.view(-1, target.shape[-1]), flat.values)
        elif target.ndim == 2:
            _put_in_matrix(target, self.indices, values)
        else:
            target[_selection(self.indices, target)] = values

    def cut(self, region: Region, shape: Sequence[int]) -> Entries:
        """The entries that lie in a box of the parameter, as entries of that box.

        Args:
            region: the box; empty for all.
            shape: the parameter's.
        """
        if not region:
            return self
        indices: list[Tensor | None] = []
        values = self.values
        for index, side, length in zip(self.indices, region, shape, strict=True):
            dim = len(indices)
            if isinstance(side, int):
                at = side if index is None else _position(index, side)
                if at is None:
                    return self._none(region)
                values = values.select(dim, at)
            elif index is None:
                values = values.narrow(dim, side[0], side[1] - side[0])
                indices.append(None)
            else:
                first, last = (int(each) for each in torch.searchsorted(index, torch.tensor(side)))
                values = values.narrow(dim, first, last - first)
                indices.append(None if side == (0, length) and last - first == length else index[first:last] - side[0])
        return Entries(tuple(indices), values)

    def as_matrix(self, shape: Sequence[int]) -> Entries:
        """The same, of the parameter as a matrix: leading dimensions one after the other, a vector as one row.

        Args:
            shape: the parameter's.
        """
        if len(shape) == 2:
            return self
        *leading, columns = self.indices or (None,)
        kept = [_all(index, side) for index, side in zip(leading, shape, strict=False)]
        rows = torch.zeros(1, dtype=torch.int64)
        for index, side in zip(kept, shape, strict=False):
            rows = (rows[:, None] * side + index).flatten()
        whole = len(rows) == math.prod(shape[:-1])
        width = len(columns) if columns is not None else shape[-1] if shape else 1
        return Entries((None if whole else rows, columns), self.values.reshape(len(rows), width))

    def _none(self, region: Region) -> Entries:
        left = sum(not isinstance(side, int) for side in region)
        empty = torch.empty(0, dtype=torch.int64)
        return Entries((empty,) * left, self.values.new_empty((0,) * left))


def _taken(tensor: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Kept rows × kept columns, in memory of their own."""
    made = tensor
    for dim, index in enumerate(indices):
        made = made if index is None else made.index_select(dim, index.to(tensor.device))
    return made.clone() if made is tensor else made


def _put_in_matrix(target: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> None:
    """Several times as fast as assigning to `target[rows, columns]`."""
    rows, columns = (None if index is None else index.to(target.device) for index in indices)
    if columns is None:
        made = values
    else:
        made = target.clone() if rows is None else target.index_select(0, rows)
        made.scatter_(1, columns.expand(len(made), -1), values)
    if rows is None:
        target.copy_(made)
    else:
        target.index_copy_(0, rows, made)


def _selection(indices: Sequence[Tensor | None], tensor: Tensor) -> tuple[Tensor | slice, ...]:
    """What `tensor[…]` needs to give kept rows × kept columns."""
    listed = [dim for dim, index in enumerate(indices) if index is not None]
    if not listed:
        return (slice(None),) * len(indices)
    chosen: list[Tensor | slice] = [slice(None)] * len(indices)
    within = range(listed[0], listed[-1] + 1)  # indexed dimensions with a slice between them would move to the front
    for dim in within:
        index = _all(indices[dim], tensor.shape[dim]).to(tensor.device)
        chosen[dim] = index.view(-1, *(1,) * (within.stop - 1 - dim))
    return tuple(chosen)


def _all(index: Tensor | None, side: int) -> Tensor:
    return torch.arange(side) if index is None else index


def _index(kept: Tensor | None, side: int) -> Tensor | None:
    """Indices of what is kept; None where all is."""
    if kept is None:
        return None
    index = kept.nonzero().flatten() if kept.dtype == torch.bool else kept.to(torch.int64)
    return None if len(index) == side else index.cpu()


def _position(index: Tensor, wanted: int) -> int | None:
    at = int(torch.searchsorted(index, wanted))
    return at if at < len(index) and int(index[at]) == wanted else None
