"""Ranks and alphas: how a plan, a rank budget or a parameter budget becomes one rank for each chosen block.

A weight m × n takes r(m + n) parameters and is scaled by s = alpha/r (alpha/√r with rsLoRA). Source of the rank budget:
P1. Described in docs/tuning/layers.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from midblock.base import LayerPlan, MidblockError
from midblock.base.json_file import shown
from midblock.tuning.settings import Placement

RANK = re.compile(r"0*[1-9][0-9]{0,9}")  # any rank that a matrix can have


@dataclass(frozen=True)
class BlockCost:
    """Trainable parameters that a block's adapters take.

    Attributes:
        per_rank: for each unit of rank, Σ(m + n) over the block's targeted weights (times their experts).
        fixed: whatever the rank (DoRA's magnitudes).
    """

    per_rank: int
    fixed: int = 0


def block_ranks(plan: LayerPlan, settings: Placement, costs: Sequence[BlockCost]) -> tuple[int, ...]:
    """Choose the rank of every adapter in each chosen block.

    In order: the plan's own ranks, `rank_budget`, `match_parameters`, `lora_r`.

    Args:
        plan: the chosen blocks.
        settings: the options named above.
        costs: one for each of the model's L blocks, chosen or not.

    Returns:
        One rank, 1 or more, per chosen block, bottom first.

    Raises:
        MidblockError: ranks in the plan together with a budget, a budget that gives less than rank 1, or a
            `match_parameters` that cannot be read.
    """
    budget = next((name for name in ("rank_budget", "match_parameters") if getattr(settings, name) is not None), None)
    if plan.ranks is not None:
        if budget:
            raise MidblockError(f"the layer plan gives ranks, and so does {budget}", hint="leave one of them out")
        return plan.ranks
    if settings.rank_budget is not None:
        return shared_ranks(settings.rank_budget, len(plan.blocks))
    if settings.match_parameters is not None:
        return matched_ranks(settings.match_parameters, plan, costs)
    return (settings.lora_r,) * len(plan.blocks)


def shared_ranks(budget: int, blocks: int) -> tuple[int, ...]:
    """Share a sum of ranks equally: every block gets ⌊budget / blocks⌋, and the rest is left over (P1).

    Raises:
        MidblockError: less than rank 1 for each.
    """
    if budget < blocks:
        what = f"a rank budget of {budget} is less than rank 1 on each of {blocks} blocks"
        raise MidblockError(what, hint=f"the smallest is {blocks}")
    return (budget // blocks,) * blocks


def matched_ranks(text: str, plan: LayerPlan, costs: Sequence[BlockCost]) -> tuple[int, ...]:
    """Choose ranks so that `plan` trains as many parameters as another plan would.

    Args:
        text: `PLAN:RANK`, the plan in any notation that gives no ranks itself.
        plan: the blocks that are to be tuned.
        costs: one for each of the model's L blocks.

    Returns:
        One rank per chosen block; see `nearest_ranks`.

    Raises:
        MidblockError: the text cannot be read, or it is less than rank 1 on each chosen block.
    """
    other, rank = _parse(text, plan.total)
    fixed = sum(costs[block].fixed for block in plan.blocks)
    wanted = sum(rank * costs[block].per_rank + costs[block].fixed for block in other.blocks) - fixed
    per_rank = [costs[block].per_rank for block in plan.blocks]
    ranks = nearest_ranks(wanted, per_rank)
    if min(ranks) < 1:
        what = f"match_parameters {shown(text)} is {wanted + fixed:,} parameters, less than rank 1 on the blocks {plan}"
        raise MidblockError(what, hint=f"those take {sum(per_rank) + fixed:,}")
    return ranks


def nearest_ranks(wanted: int, per_rank: Sequence[int]) -> tuple[int, ...]:
    """Ranks whose parameters come nearest to `wanted`: r everywhere, r + 1 on the first few blocks.

    How many are "the first few" is what brings the sum nearest, the smaller one of two equally near; so the sum is off
    by half a rank of one block at the most, to either side.

    Args:
        wanted: parameters in all.
        per_rank: parameters a unit of rank takes, for each block.

    Returns:
        One rank per block; they differ by one at the most. Zero or less where `wanted` is too small.
    """
    rank, rest = divmod(wanted, sum(per_rank))
    extra = list(accumulate(per_rank, initial=0))
    first = min(range(len(extra)), key=lambda count: abs(extra[count] - rest))
    return tuple(rank + (position < first) for position in range(len(per_rank)))


def alpha_for(rank: int, settings: Placement) -> float:
    """LoRA's alpha for a rank: `lora_alpha` where given, else what makes the effective scale `lora_scale`.

    PEFT multiplies B A by alpha/r, with `use_rslora` by alpha/√r. So that `lora_scale` means the same in both, alpha is
    lora_scale·r, or lora_scale·√r; the two differ only under a fixed `lora_alpha`.
    """
    if settings.lora_alpha is not None:
        return float(settings.lora_alpha)
    return float(settings.lora_scale * (math.sqrt(rank) if settings.use_rslora else rank))


def _parse(text: str, total: int) -> tuple[LayerPlan, int]:
    notation, _, digits = text.rpartition(":")
    hint = "a layer plan and a rank, such as all:64"
    if not notation or not RANK.fullmatch(digits.strip()):
        raise MidblockError(f"cannot read match_parameters {shown(text)}", hint=hint)
    other = LayerPlan.parse(notation, total)
    if other.ranks is not None:
        raise MidblockError(f"match_parameters {shown(text)} gives ranks twice", hint=hint)
    return other, int(digits)
