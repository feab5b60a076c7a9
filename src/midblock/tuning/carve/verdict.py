"""What carving came to, in a few numbers: how sparse, within which budget, and how far chance decided it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midblock.base import MidblockError
from midblock.tuning.carve.best import Found
from midblock.tuning.carve.carver import Carver


def verdict(carver: Carver, found: Found, on: Mapping[int, Bool[Tensor, "_"]]) -> dict[str, Any]:
    """The facts that a carrier is written with.

    Args:
        found: which state of the training it is.
        on: its masks, by layer.

    Returns:
        `masks`, `masks_on`, `entries` and `entries_on` (of the parameters that differ), `step`, `loss`, `budget`,
        `budget_met`, `lambda`, and `start_correlation`: Spearman's of the masks with their random start θ. Near 1,
        chance decided which channels are carried.
    """
    layers = sorted(on)
    masks = torch.cat([on[layer].cpu() for layer in layers])
    start = torch.cat([carver.start[layer].cpu() for layer in layers])
    kept = whole = 0
    for name, weight in carver.weights.items():
        count = 1
        places = carver.groups.channels[name].kept(on[weight.layer].cpu())
        for size, each in zip(weight.parameter.shape, places, strict=True):
            count *= size if each is None else len(each)
        kept, whole = kept + count, whole + weight.parameter.numel()
    return {
        "masks": len(masks),
        "masks_on": int(masks.sum()),
        "entries": whole,
        "entries_on": kept,
        "step": found.step,
        "loss": found.loss,
        "budget": carver.dual.budget,
        "budget_met": carver.best is not None,
        "lambda": carver.dual.strength,
        "start_correlation": rank_correlation(masks, start),
    }


def rank_correlation(on: Bool[Tensor, "n"], start: Float[Tensor, "n"]) -> float | None:
    """Spearman's correlation of masks with numbers of which no two are alike; None where all masks are alike."""
    ranks = start.argsort().argsort().double()
    chosen = on.double()
    ranks, chosen = ranks - ranks.mean(), chosen - chosen.mean()
    scale = float(ranks.norm() * chosen.norm())
    return float(ranks @ chosen) / scale if scale > 0 else None


def check_some(on: Mapping[int, Bool[Tensor, "_"]]) -> None:
    """Refuse a carrier that is the base, or the whole change.

    Raises:
        MidblockError: all masks are off, or all are on.
    """
    kept, total = sum(int(each.sum()) for each in on.values()), sum(map(len, on.values()))
    if kept == 0:
        hint = "lower --lambda-max or --mask-learning-rate, or --loss-budget"
        raise MidblockError("all masks are off: the carrier would be the base", hint=hint)
    if kept == total:
        hint = "more --num-train-epochs, or a larger --loss-budget or --lambda-max"
        raise MidblockError("all masks are on: the carrier would be the whole change", hint=hint)
