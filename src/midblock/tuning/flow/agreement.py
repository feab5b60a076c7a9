"""How far the gradients of different steps point the same way, from their inner products.

Agreement is the mean of cos(g_i, g_j) over pairs of steps; the signal-to-noise ratio is ‖μ‖² / E‖g − μ‖² for g_k = μ +
noise. The delete-one jackknife serves for intervals: a bootstrap would draw a step twice, and a step agrees perfectly
with its own copy. Of K steps it is value ± t_{K−1}·√(K/(K−2))·SE, SE² = (K−1)/K · Σ(θ_k − θ̄)², for an agreement on
Fisher's scale; pairs of few steps share more than the jackknife sees, hence the root. Cost: K² numbers. Described in
docs/causes/flow.md, coverage in docs/results/coverage.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from midblock.base import LEVEL, Estimate
from midblock.base.few import enough
from midblock.metrics.scales import Bounds, scale_of

ROUNDING = 1e-12  # a spread this small, relative to the gradients, is rounding


def agreement(gram: Float[Tensor, "K K"]) -> Estimate | None:
    """Mean cosine between the gradients of two different steps; 1 where all steps pull the same way.

    Args:
        gram: inner products g_i·g_j, float64. Steps whose gradient is zero have no direction and are left out.

    Returns:
        n is the number of steps; the interval needs three. None for less than two.
    """
    known = gram.diagonal() > 0
    gram = gram[known][:, known]
    lengths = gram.diagonal().sqrt()
    return _jackknife(mean_of_pairs, gram / lengths[:, None] / lengths, (-1.0, 1.0))


def signal_to_noise(gram: Float[Tensor, "K K"]) -> Estimate | None:
    """‖μ‖² over the mean squared deviation from μ, for gradients g_k = μ + noise.

    ‖μ‖² is estimated by the mean of g_i·g_j over pairs of steps, which is unbiased and may be negative; the noise by
    1/(K−1) Σ‖g_k − mean‖², which is the mean of ‖g_k‖² less the mean over pairs.

    Args:
        gram: inner products g_i·g_j, float64.

    Returns:
        n is the number of steps; the interval needs three. None for less than two, or without any noise.
    """
    return _jackknife(_ratio, gram, (None, None))


def _ratio(gram: Float[Tensor, "K K"]) -> float:
    signal, power = mean_of_pairs(gram), float(gram.diagonal().mean())
    noise = power - signal
    return signal / noise if noise > ROUNDING * power else float("nan")


def mean_of_pairs(gram: Float[Tensor, "K K"]) -> float:
    """Mean over the pairs i < j."""
    K = len(gram)
    return float(gram.triu(1).sum() / (K * (K - 1) / 2))


def _jackknife(measure: Callable[[Tensor], float], gram: Float[Tensor, "K K"], bounds: Bounds) -> Estimate | None:
    """The measure, with an interval from what it is with each step left out in turn."""
    K = len(gram)
    value = measure(gram) if K > 1 else float("nan")
    if value != value:
        return None
    if not enough("pairs", K):
        return Estimate(value, float("nan"), float("nan"), K)
    kept = [[step for step in range(K) if step != left] for left in range(K)]
    parts = np.array([measure(gram[keep][:, keep]) for keep in kept])
    there, back = scale_of(np.array([value, *parts]), bounds)
    without, centre = there(parts), there(np.array([value]))
    error = np.sqrt(np.square(without - without.mean()).sum() * (K - 1) / K)
    half = stdtrit(K - 1, (1 + LEVEL) / 2) * error * np.sqrt(K / (K - 2))
    found = Estimate(value, float(back(centre - half)[0]), float(back(centre + half)[0]), K)
    return found.within(bounds)
