"""Carried: the values of one or several carriers in the places of a base's, put there tensor by tensor when it is read.

Several add: where two hold the same entry it becomes base + (v₁ − base) + (v₂ − base); where one does, its value to the
bit. A piece on disk in whose box no entry lies is left as it is. Cost: a copy of a touched piece; nothing else is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.checkpoints.carrier import Carrier
from midblock.checkpoints.entries import Entries
from midblock.checkpoints.pieces import Piece


@dataclass(frozen=True)
class Carried:
    """Carriers on one base.

    Attributes:
        carriers: in the order they were named.
        outlined: where entries lie, only type and shape are told, on the meta device.
    """

    carriers: tuple[Carrier, ...] = ()
    outlined: bool = False

    @cached_property
    def names(self) -> frozenset[str]:
        """The parameters that one of them changes."""
        return frozenset(name for carrier in self.carriers for name in carrier.held)

    def touch(self, piece: Piece) -> bool:
        """Whether an entry lies in a piece."""
        return piece.name in self.names and bool(self.within(piece))

    def placed(self, piece: Piece, base: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """A piece's value with the entries in it; the base's own tensor where none lies in it."""
        if piece.name not in self.names:
            return base
        within = self.within(piece)
        if self.outlined and within:
            return torch.empty(base.shape, dtype=_widest(base, within), device="meta")
        return summed(base, [(entries, 1.0) for entries in within])

    def within(self, piece: Piece) -> list[Entries]:
        """Each carrier's entries in a piece, as entries of that piece; of carriers that have some."""
        found = []
        for carrier in self.carriers:
            if piece.name in carrier.held:
                entries = carrier.entries(piece.name).cut(piece.region, carrier.config.shapes[piece.name])
                if entries.count:
                    found.append(entries)
        return found


def summed(
    base: Shaped[Tensor, "*shape"], parts: Sequence[tuple[Entries, float]], *, start: Tensor | None = None
) -> Shaped[Tensor, "*shape"]:
    """base + Σ scale · (values − base), each where its entries are.

    Args:
        parts: entries and their scales.
        start: what there is already of the sum, where that is not the base itself.

    Returns:
        A new tensor of the widest type; float64 where that could not hold a sum to the bit.
        The base itself where there is no part.
    """
    if not parts:
        return base if start is None else start
    if len(parts) == 1 and start is None:
        return parts[0][0].place(base, parts[0][1])
    made = (base if start is None else start).to(torch.float64, copy=True)
    for entries, scale in parts:
        before, own = entries.taken(made), entries.taken(base).double()
        alone = entries.scaled(base, scale).double()
        # adding to an entry that is still the base's gives the value itself, which (v − base) + base may miss
        entries.put(made, torch.where(before == own, alone, before + (alone - own)))
    narrow = made.to(_widest(base, [entries for entries, _ in parts]))
    return narrow if torch.equal(narrow.double(), made) else made


def _widest(base: Tensor, parts: Sequence[Entries]) -> torch.dtype:
    return reduce(torch.promote_types, (entries.values.dtype for entries in parts), base.dtype)
