"""Emergence: the depth at which a model read off early has half of its final accuracy.

min {l : a_l ≥ a_{L−1}/2}, its interval from the bootstrap samples that the curve's own intervals come from. Described
in docs/causes/probe.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from midblock.base.few import enough
from midblock.evaluation import TokenMean

SHARE = 0.5


@dataclass(frozen=True)
class Emergence:
    """Where a curve by depth first reaches half of its last value.

    Attributes:
        layer: -1 the embedding, 0…L-1 the blocks.
        depth: (layer + 1) / L.
        low, high: 95 % interval of the layer, from bootstrap samples of the prompts in which the last value is above 0;
            None where they are too few.
    """

    layer: int
    depth: float
    low: int | None
    high: int | None

    def as_record(self) -> dict[str, Any]:
        return {"layer": self.layer, "depth": self.depth, "low": self.low, "high": self.high}


def emergence(curve: Sequence[TokenMean], *, first: int = -1, seed: int = 0) -> Emergence | None:
    """Find the depth of emergence.

    Args:
        curve: accuracy behind layer `first` and each one up to block L-1, over the same prompts.
        first: -1 the embedding, 0 where that was not measured.
        seed: decides the resampling.

    Returns:
        None where the last value is 0: nothing emerges.
    """
    values = np.array([each.value for each in curve])
    if not values[-1] > 0:
        return None
    L, layer = len(curve) + first, first + int(first_half(values[None])[0])
    low: int | None = None
    high: int | None = None
    if enough("percentile", curve[-1].units):
        drawn = np.stack([each.draws(seed) for each in curve], axis=1)
        reached = first + first_half(drawn[drawn[:, -1] > 0])
        low, high = (int(q) for q in np.quantile(reached, [0.025, 0.975], method="inverted_cdf"))
    return Emergence(layer, (layer + 1) / L, low, high)


def first_half(curves: Float64[np.ndarray, "R layers"]) -> Int64[np.ndarray, "R"]:
    """For each curve the first position whose value is at least half of the last one's."""
    return np.argmax(curves >= SHARE * curves[:, -1:], axis=1)
