"""What the base's own states say of each block: 1 − CKA of what enters and leaves it, and the variance that enters it.

Both are made of the same sums over tokens, XᵀX, YᵀY and XᵀY, centred. Cost: one forward pass, and three D×D products a
block and batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.runs.lending import evaluating
from midblock.trace import record_calls, through_backbone

EVA_RANK = 16  # r, of which EVA has r·L components to give away

Square = Float64[Tensor, "D D"]


@dataclass(eq=False)
class Moments:
    """Sums over tokens of what stands at one depth, and with the depth above.

    Attributes:
        count: tokens.
        total: Σ x.
        own: Σ x xᵀ.
        above: Σ x yᵀ with y one block further; None behind the last.
    """

    count: int
    total: Float64[Tensor, "D"]
    own: Square
    above: Square | None

    def add(self, other: Moments) -> None:
        """Take in those of another batch."""
        self.count, self.total, self.own = self.count + other.count, self.total + other.total, self.own + other.own
        if self.above is not None and other.above is not None:
            self.above = self.above + other.above

    def covariance(self) -> Square:
        """Σ (x − x̄)(x − x̄)ᵀ."""
        return self.own - torch.outer(self.total, self.total) / self.count


def state_moments(model: nn.Module, batches: Sequence[Batch]) -> list[Moments]:
    """Of what enters each block, and of what leaves the last: L + 1 of them.

    Raises:
        MidblockError: no batch, or blocks that are not one after the other.
    """
    anatomy, found = Anatomy.of(model), list[Moments]()
    with evaluating(model):
        for batch in batches:
            with record_calls(anatomy, range(len(anatomy) + 1)) as ran:
                through_backbone(anatomy, batch.input_ids)
            real = batch.region("all")
            states = [ran.entering[depth][real.to(ran.entering[depth].device)] for depth in range(len(anatomy) + 1)]
            made = [_moments(x, y) for x, y in zip(states, [*states[1:], None], strict=True)]
            if not found:
                found = made
                continue
            for old, new in zip(found, made, strict=True):
                old.add(new)
    if not found:
        raise MidblockError("no examples to read the base's states on")
    return found


def _moments(x: Tensor, y: Tensor | None) -> Moments:
    x = x.cpu().double()
    return Moments(len(x), x.sum(0), x.T @ x, None if y is None else x.T @ y.cpu().double())


def one_minus_cka(moments: Sequence[Moments]) -> list[float]:
    """1 − CKA (linear, over tokens) of what enters and leaves each block: 0 for a block that puts out its input.

    Source: layer-wise LoRA by CKA, arXiv 2602.05988.
    """
    found = []
    for here, there in pairwise(moments):
        assert here.above is not None  # noqa: S101 - only the last has none
        crossed = here.above - torch.outer(here.total, there.total) / here.count
        size = here.covariance().norm() * there.covariance().norm()
        found.append(float(1 - crossed.square().sum() / size) if size > 0 else float("nan"))
    return [max(value, 0.0) if value == value else value for value in found]


def eva_ranks(moments: Sequence[Moments], rank: int = EVA_RANK) -> list[float]:
    """How many of r·L ranks EVA would give to each block: those of the components that explain the most variance.

    Each component of what enters a block counts with its share of the block's variance, as EVA redistributes ranks over
    weights (arXiv 2410.07170); here over blocks, from the residual stream.
    """
    shares = []
    for here in moments[:-1]:
        values = torch.linalg.eigvalsh(here.covariance()).clamp(min=0).flip(0)
        shares.append(values / values.sum().clamp(min=1e-30))
    widths = [len(each) for each in shares]
    owner = torch.repeat_interleave(torch.arange(len(shares)), torch.tensor(widths))
    best = torch.cat(shares).argsort(descending=True, stable=True)[: rank * len(shares)]
    return torch.bincount(owner[best], minlength=len(shares)).double().tolist()
