"""Own and inherited change: what a block's own tuning does, apart from what it makes of changed input.

With f_b, f_s a block of the base and of the tuned model and h_b the base's state that enters it,

    own = f_s(h_b) − f_b(h_b),     increment = (h_s − h_b) behind the block − the same in front of it = own + reaction,

so reaction is what the tuned block makes of the change that reached it. A block whose weights did not move has own = 0
whatever its states do. All are vectors; pooling over tokens is linear, so they add up in prompts' means as they do in
tokens. As in `geometry`, a metric is a function of G equally large sets of prompts. Cost: the block once more.
Formulas: docs/metrics.md, "Own and inherited change".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

PerSet = Float[Tensor, " G"]


@dataclass(frozen=True, eq=False)
class OwnChange:
    """What one block adds to the change of N prompts, a row each, in float64.

    Attributes:
        base: the base's pooled states behind the block.
        own: what its own tuning adds.
        increment: all that is added across it; None where the layer below was not measured.
        reverse: f_s(h_s) − f_b(h_s), the same difference on the tuned model's states; None where it was not measured.
    """

    base: Float[Tensor, "N D"]
    own: Float[Tensor, "N D"]
    increment: Float[Tensor, "N D"] | None = None
    reverse: Float[Tensor, "N D"] | None = None

    @cached_property
    def norms(self) -> Float[Tensor, " N"]:
        """Length of each base row."""
        return self.base.norm(dim=1)

    @cached_property
    def reaction(self) -> Float[Tensor, "N D"] | None:
        """What the block makes of changed input."""
        return None if self.increment is None else self.increment - self.own


@dataclass(frozen=True, eq=False)
class OwnChanges:
    """The change of a block, and G equally large sets of prompts to keep."""

    change: OwnChange
    keep: Int[Tensor, "G n"]

    @classmethod
    def whole(cls, change: OwnChange) -> OwnChanges:
        """All prompts, as one set."""
        return cls(change, torch.arange(len(change.base))[None])

    def relative(self, vectors: Float[Tensor, "N D"] | None) -> PerSet | None:
        """Mean length of a set's rows over the base's."""
        if vectors is None:
            return None
        return vectors.norm(dim=1)[self.keep].mean(1) / self.change.norms[self.keep].mean(1)


def change_own(changes: OwnChanges) -> PerSet | None:
    """Mean ‖own‖ over the base's mean norm."""
    return changes.relative(changes.change.own)


def change_reaction(changes: OwnChanges) -> PerSet | None:
    """Mean ‖reaction‖ over the base's mean norm."""
    return changes.relative(changes.change.reaction)


def change_own_reverse(changes: OwnChanges) -> PerSet | None:
    """Mean ‖f_s(h_s) − f_b(h_s)‖ over the base's mean norm."""
    return changes.relative(changes.change.reverse)


def own_share(changes: OwnChanges) -> PerSet | None:
    """Σ ⟨own, increment⟩ over Σ ‖increment‖²: the share of what is added that points along the block's own part.

    1 where the block only acts, 0 where it only reacts; outside 0…1 where both pull against each other. None where
    nothing is added to any prompt.
    """
    increment = changes.change.increment
    if increment is None or not bool(increment.any()):
        return None
    along = (changes.change.own * increment).sum(1)[changes.keep].sum(1)
    return along / increment.square().sum(1)[changes.keep].sum(1)
