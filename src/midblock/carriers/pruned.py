"""The rival that keeps the entries of a change that are largest in magnitude, wherever they are.

An entry costs its value and an index of four bytes, where a carrier names whole rows and columns. The threshold is
exact, found by two counts over the bits of |Δ| as float32. Cost: three passes over both models, a tensor at a time.
Source: magnitude pruning of task vectors (Yadav et al. 2023, TIES).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from midblock.base import MidblockError
from midblock.carriers.moved import Moved, moved
from midblock.carriers.rivals import Rival, Scattered
from midblock.checkpoints.parameters import Weights

INDEX = 4  # bytes
HALF = 1 << 16


def pruned(base: Weights, tuned: Weights, budget: int, dtype: torch.dtype | None = None) -> Rival:
    """The largest entries of a change that fit a budget.

    Args:
        budget: bytes.
        dtype: that values are kept in; the widest of both models' when left out.

    Raises:
        MidblockError: the models do not differ, or do not fit each other, or the budget holds no entry.

    Example:
        >>> pruned(base_model, tuned_model, budget=1000).nbytes
        1000
    """
    kinds = {each.dtype for each in moved(base, tuned, dtype)}
    if not kinds:
        raise MidblockError("the tuned model's weights are the base's: there is no change to prune")
    cost = INDEX + max(kind.itemsize for kind in kinds)
    if not (count := budget // cost):
        raise MidblockError(f"{budget} bytes hold no entry of a change, one takes {cost}")
    threshold, ties = _threshold(lambda: moved(base, tuned, dtype), count)
    changes: dict[str, Scattered] = {}
    kept = whole = 0.0
    for each in moved(base, tuned, dtype):
        squared, bits = each.change.flatten().square(), _bits(each)
        index = (bits > threshold).nonzero().flatten()
        if ties:
            tied = (bits == threshold).nonzero().flatten()[:ties]
            ties -= len(tied)
            index = torch.cat([index, tied]).sort().values
        whole += float(squared.sum())
        kept += float(squared[index].sum())
        if len(index):
            values, before = (value.flatten()[index] for value in (each.after, each.before))
            changes[each.name] = Scattered(tuple(each.after.shape), index, values.to(each.dtype), before)
    entries = sum(len(change.index) for change in changes.values())
    return Rival("pruned", entries * cost, kept / whole, changes)


def _threshold(changes: Callable[[], Iterator[Moved]], wanted: int) -> tuple[int, int]:
    """Bits above which every entry is kept, and how many of those that have just these bits.

    Bits of numbers that are not negative are ordered as the numbers are.
    """
    upper = torch.zeros(HALF, dtype=torch.int64)
    for each in changes():
        upper += torch.bincount(_nonzero(each) >> 16, minlength=HALF)
    bucket, left = _last(upper, wanted)
    lower = torch.zeros(HALF, dtype=torch.int64)
    for each in changes():
        bits = _nonzero(each)
        lower += torch.bincount(bits[bits >> 16 == bucket] & (HALF - 1), minlength=HALF)
    within, left = _last(lower, left)
    return (bucket << 16) + within, left


def _last(counts: Int[Tensor, " n"], wanted: int) -> tuple[int, int]:
    """The bin, counted from the last, in which `wanted` are reached, and how many of that bin are wanted."""
    above = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(above, min(wanted, int(above[-1]))))
    before = int(above[at - 1]) if at else 0
    return len(counts) - 1 - at, min(wanted, int(above[-1])) - before


def _nonzero(each: Moved) -> Int[Tensor, " n"]:
    bits = _bits(each)
    return bits[bits > 0]


def _bits(each: Moved) -> Int[Tensor, " n"]:
    return each.change.abs().float().flatten().view(torch.int32)
