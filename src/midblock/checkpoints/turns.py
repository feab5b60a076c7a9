"""Turns: what is done to a whole tensor on disk, entry by entry in another order, before a model takes boxes of it.

Some files hold a matrix transposed, or with the rows of two halves woven into each other. Either is undone exactly, so
such a tensor is read and written like any other. Cost: a transposition is a view, weaving copies. Source:
`transformers.core_model_loading`.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor


@dataclass(frozen=True)
class Transposition:
    """Two dimensions that change places."""

    first: int
    second: int

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in memory of a tensor with this shape on disk."""
        sides = list(stored)
        sides[self.first], sides[self.second] = stored[self.second], stored[self.first]
        return tuple(sides)

    def apply(self, stored: Shaped[Tensor, "*sides"]) -> Shaped[Tensor, "*turned"]:
        return stored.transpose(self.first, self.second)

    def undo(self, turned: Shaped[Tensor, "*turned"]) -> Shaped[Tensor, "*sides"]:
        return turned.transpose(self.first, self.second).contiguous()


@dataclass(frozen=True)
class Unweaving:
    """Entries a₀ b₀ a₁ b₁ … along a dimension put as a₀ a₁ … b₀ b₁ …; `inverse` the other way round."""

    dim: int
    inverse: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in memory of a tensor with this shape on disk: the same."""
        return stored

    def apply(self, stored: Shaped[Tensor, "*sides"]) -> Shaped[Tensor, "*sides"]:
        half = stored.shape[self.dim] // 2
        parted = stored.unflatten(self.dim, (2, half) if self.inverse else (half, 2))
        return parted.transpose(self.dim, self.dim + 1).flatten(self.dim, self.dim + 1)

    def undo(self, turned: Shaped[Tensor, "*sides"]) -> Shaped[Tensor, "*sides"]:
        return Unweaving(self.dim, not self.inverse).apply(turned)


Turn = Transposition | Unweaving
