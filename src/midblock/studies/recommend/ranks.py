"""Ranks by depth: a budget shared among the chosen blocks by how much each of them is pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from midblock.base import LayerPlan
from midblock.tuning.place.budget import shared_ranks


def with_ranks(plan: LayerPlan, scores: Sequence[float], budget: int | None) -> LayerPlan:
    """Give each chosen block a rank of 1 or more, in proportion to its score; the ranks add up to the budget.

    Args:
        scores: one a block of the model; where none of the chosen has a score above 0, they share equally.
        budget: sum of ranks over blocks; None leaves the plan without ranks.

    Raises:
        MidblockError: less than rank 1 for each.
    """
    if budget is None:
        return plan
    count = len(plan.blocks)
    shared_ranks(budget, count)  # refuses a budget that is too small
    weights = np.array([max(scores[block], 0.0) if math.isfinite(scores[block]) else 0.0 for block in plan.blocks])
    weights = weights if weights.sum() > 0 else np.ones(count)
    wanted = (budget - count) * weights / weights.sum()
    ranks = 1 + np.floor(wanted).astype(int)
    # of what is left over one each, to those that lost most to rounding; of equals the lowest
    for place in np.argsort(-(wanted - np.floor(wanted)), kind="stable")[: budget - int(ranks.sum())]:
        ranks[place] += 1
    return LayerPlan(plan.total, plan.blocks, tuple(ranks.tolist()))
