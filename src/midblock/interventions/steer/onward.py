"""Passes of a model that is steered behind one block: onward from that block, what lies below being the model's own.

Whole passes give the same and are what these are held against. Cost: the model's own pass, and each of its blocks once
more on the way up; then, for each block that is steered, that block and those above it. One layer's states are held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.interventions.steer.steering import steered
from midblock.trace import BlockCalls, record_calls, run_backbone, same_states


@dataclass
class Onward:
    """Passes of one batch from the steered block on; blocks are asked for bottom first.

    Attributes:
        calls: how the model calls its blocks for this batch.
        states: the model's own, entering block `reached`.
    """

    anatomy: Anatomy
    calls: BlockCalls
    states: Float[Tensor, "B T D"]
    reached: int = 0

    @classmethod
    def of(cls, anatomy: Anatomy, input_ids: Int[Tensor, "B T"]) -> Onward:
        """Record the model's own pass.

        Raises:
            MidblockError: its blocks cannot be run one by one.
        """
        with record_calls(anatomy, (0,)) as calls:
            run_backbone(anatomy, input_ids)
        return cls(anatomy, calls, calls.entering.pop(0))

    def normed(self, block: int, amounts: Float[Tensor, "*rows D"], alpha: float) -> Float[Tensor, "B T D"]:
        """What the head is given where alpha·amounts are added behind a block."""
        blocks = list(self.anatomy.blocks)
        self.states = self.calls.run(blocks, self.states, self.reached, block)
        self.reached = block
        with steered(self.anatomy, {block: amounts}, alpha):
            states = self.calls.run(blocks, self.states, block, len(blocks))
        with torch.inference_mode():
            return self.anatomy.normed(states)


@dataclass(frozen=True)
class Whole:
    """Whole passes of one batch."""

    anatomy: Anatomy
    input_ids: Int[Tensor, "B T"]

    def normed(self, block: int, amounts: Float[Tensor, "*rows D"], alpha: float) -> Float[Tensor, "B T D"]:
        """As of `Onward`."""
        with steered(self.anatomy, {block: amounts}, alpha):
            return run_backbone(self.anatomy, self.input_ids)


def obstacle(anatomy: Anatomy, input_ids: Int[Tensor, "B T"], amount: Float[Tensor, "D"], alpha: float) -> str | None:
    """Why passes cannot go onward from a steered block; None where they make what whole passes make.

    The outermost blocks and the middle one are steered both ways. Steered behind block 0 all that blocks hand on beside
    their states has changed, and would be missed.

    Args:
        input_ids: a few tokens; rows are steered to and fro by turns, so that none stands for another.
        amount: what is added.
    """
    try:
        onward = Onward.of(anatomy, input_ids)
    except MidblockError as reason:
        return reason.what
    last, whole = len(anatomy) - 1, Whole(anatomy, input_ids)
    signs = torch.ones(len(input_ids), 1, 1, dtype=amount.dtype)
    signs[1::2] = -1
    for block in sorted({0, min(1, last), last // 2, last}):
        ours, theirs = (way.normed(block, signs * amount, alpha) for way in (onward, whole))
        if bool(torch.isfinite(theirs).all()) and not same_states(ours, theirs):
            return f"steered behind block {block}, its blocks run one by one do not make what it makes itself"
    return None
