"""A model's tensors as they are to be written: by their names on disk, whole, an adapter folded in.

`EffectiveTensors` knows parameters by their names in memory; a merge or an export writes them under the base's names
on disk again, each in the shape it has there. Cost: a view where a tensor on disk is one piece; one of several pieces
is put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.checkpoints.carried import Carried
from midblock.checkpoints.effective import EffectiveTensors
from midblock.checkpoints.entries import Entries
from midblock.checkpoints.pieces import Piece, put_together
from midblock.checkpoints.projections import Projection
from midblock.checkpoints.source import Source


@dataclass(frozen=True)
class Overlay:
    """A base's tensor as a matrix, and entries to put into it.

    Attributes:
        rows: the matrix; a vector is one row.
        entries: of the matrix.
    """

    rows: Shaped[Tensor, "m n"]
    entries: Entries

    @classmethod
    def of(cls, base: Shaped[Tensor, "*shape"], entries: Entries) -> Overlay:
        return cls(base.reshape(-1, base.shape[-1] if base.ndim else 1), entries.as_matrix(base.shape))

    def fill(self, made: Shaped[Tensor, "rows n"], first: int) -> None:
        """Write the rows from `first` on, entries put in, into `made`."""
        last = first + len(made)
        made.copy_(self.rows[first:last])
        within = self.entries.cut(((first, last), (0, self.rows.shape[1])), tuple(self.rows.shape))
        if within.count:
            within.put(made, within.values)


def value_on_disk(tensors: EffectiveTensors, stored: str) -> Source:
    """The value of what is stored under a name on disk; of a head that the files lack, under its own name."""
    pieces = tensors.on_disk.get(stored)
    if pieces is None or (tensors.tied and pieces[0].name == tensors.head):
        return tensors.source(tensors.head_piece)
    return _joined(tensors, stored, [(piece, tensors.source(piece)) for piece in pieces])


def value_on_disk_like(tensors: EffectiveTensors, other: EffectiveTensors, stored: str) -> Source:
    """The value in `tensors` of what another model stores under a name on disk.

    Raises:
        KeyError: `tensors` lacks it.
    """
    pieces = other.on_disk.get(stored)
    if pieces is None:
        return tensors.source(tensors.head_piece)
    return _joined(other, stored, [(piece, tensors.like(other, piece)) for piece in pieces])


def carried_on_disk_like(tensors: EffectiveTensors, other: EffectiveTensors, stored: str) -> Overlay | None:
    """What another model stores under a name, as the base's tensor and a carrier's entries, not yet put together.

    Returns:
        None where it is more than that: several carriers, or pieces; `value_on_disk_like` then has it.
    """
    piece, *more = other.on_disk.get(stored, (other.head_piece,))
    twin = tensors.twin(other, piece)
    if more or piece.inside or piece.turn or twin is None or twin.turn or not tensors.changes.carried.touch(twin):
        return None
    within = tensors.changes.carried.within(twin)
    bare = replace(tensors, changes=replace(tensors.changes, carried=Carried())).source(twin).stored
    return Overlay.of(bare, within[0]) if len(within) == 1 and bare.is_contiguous() else None


def projection_on_disk(tensors: EffectiveTensors, stored: str) -> Projection:
    """What a tensor on disk is: a parameter, or the role in it that the tensor is a piece of."""
    if stored not in tensors.on_disk:
        return replace(tensors.projection(tensors.head), name=stored)
    piece = tensors.on_disk[stored][0]
    where = tensors.projection(piece.name)
    if not piece.region:
        return where if where.name == stored else replace(where, name=stored)
    held = where.parts(torch.empty(tensors.shape(piece), device="meta"), piece.region)
    return replace(where, name=stored, role=next(iter(held)) if len(held) == 1 else where.role)


def release_on_disk(tensors: EffectiveTensors, other: EffectiveTensors, stored: str) -> None:
    """Give back the pages from which `tensors` read another model's tensor on disk."""
    for piece in other.on_disk.get(stored, ()):
        for own in tensors.by_name.get(tensors.name_of(other, piece.name), ()):
            tensors.release(own)


def _joined(owner: EffectiveTensors, stored: str, parts: Sequence[tuple[Piece, Source]]) -> Source:
    """One tensor on the owner's disk of the pieces that it holds."""
    (piece, source), *more = parts
    if not more and not piece.inside:
        return source
    shape = owner.store.shape(stored)
    boxes = [(each.inside, source.value()) for each, source in parts]
    if piece.turn is None:
        return Source(put_together(shape, boxes))
    return Source(piece.turn.undo(put_together(piece.turn.shape(shape), boxes)))
