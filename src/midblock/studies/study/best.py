"""Which arm is best, and how sure that is: a bootstrap over seeds and items together, drawn alike for all arms.

An arm's score is its mean over seeds and items. It can be off in two ways: other seeds would have tuned other models,
and other items would have been answered otherwise. A draw resamples both. Seeds are few (three, often), so that a
plain bootstrap would find them too much alike: their part is scaled by √(S/(S−1)) and by Student's t of S−1 degrees of
freedom. Variants of one question are resampled whole. Numbers: docs/study.md, "How sure". Cost: two products of R × N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from midblock.base import LEVEL, MidblockError, generator
from midblock.base.bootstrap import quantiles
from midblock.base.clusters import Clusters
from midblock.evaluation.paired import holm

RESAMPLES = 10_000
POWER = 0.8


@dataclass(frozen=True, eq=False)
class Scores:
    """What arms scored.

    Attributes:
        arms: their names.
        values: of each arm (K), seed (S) and item (N); higher is better.
        weights: what each item counts.
        clusters: which items are variants of one question; None where none are.
    """

    arms: tuple[str, ...]
    values: Float64[np.ndarray, "K S N"]
    weights: Float64[np.ndarray, "N"]
    clusters: Clusters | None = None

    @property
    def means(self) -> Float64[np.ndarray, "K"]:
        """Each arm's score."""
        return (self.values.mean(1) @ self.weights) / self.weights.sum()


@dataclass(frozen=True)
class Compared:
    """An arm against the reference, on the same items and seeds.

    Attributes:
        difference: the arm's score minus the reference's, higher is better.
        low, high: its 95 % interval.
        p: two-sided.
        p_holm: the same, held against all comparisons of the study (Holm).
        detectable: the smallest difference that would have been found in four of five such studies.
        verdict: "better", "worse" or "the evidence does not say".
    """

    arm: str
    reference: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    detectable: float
    verdict: str


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a study says of its arms.

    Attributes:
        scores: what the arms scored.
        best: the arm that is best with the probability that was asked for; None where the evidence does not say.
        probabilities: of each arm, how likely it is the best one.
        low, high: 95 % intervals of the arms' scores.
    """

    scores: Scores
    best: str | None
    probabilities: Float64[np.ndarray, "K"]
    low: Float64[np.ndarray, "K"]
    high: Float64[np.ndarray, "K"]
    drawn: Float64[np.ndarray, "R K"] = field(repr=False)

    @property
    def leader(self) -> str:
        """The arm that is best most often, of equals the first."""
        return self.scores.arms[int(np.argmax(self.probabilities))]


UNDECIDED = "the evidence does not say"


def judge(scores: Scores, probability: float, seed: int = 0) -> Verdict:
    """Say which arm is best.

    Args:
        probability: how likely it has to be.
        seed: decides the resampling.

    Raises:
        MidblockError: no arm, seed or item.
    """
    if 0 in scores.values.shape:
        raise MidblockError("there are no scores to compare arms by")
    drawn = draws(scores, seed)
    probabilities = _shares_of_best(drawn)
    leader = int(np.argmax(probabilities))
    sure = len(scores.arms) > 1 and probabilities[leader] >= probability
    low, high = (np.array(ends) for ends in zip(*map(quantiles, drawn.T), strict=True))
    return Verdict(scores, scores.arms[leader] if sure else None, probabilities, low, high, drawn)


def draws(scores: Scores, seed: int = 0) -> Float64[np.ndarray, "R K"]:
    """The arms' scores in R bootstrap samples of seeds and items."""
    mean = scores.means
    sums, counts = _of_clusters(scores)
    S, M = scores.values.shape[1], len(counts)
    found = np.broadcast_to(mean, (RESAMPLES, len(mean))).copy()
    if M > 1:
        times = generator(seed, "study", "items", M).multinomial(M, np.full(M, 1 / M), RESAMPLES)
        resampled = (times @ sums.T) / (times @ counts)[:, None]
        found += (resampled - mean) * math.sqrt(M / (M - 1))
    if S > 1:
        found += _of_seeds(scores, mean, seed)
    return found


def _of_clusters(scores: Scores) -> tuple[Float64[np.ndarray, "K M"], Float64[np.ndarray, "M"]]:
    """Weighted sums of each arm over what is resampled together, and what that counts."""
    weighted = np.concatenate([scores.values.mean(1) * scores.weights, scores.weights[None]])
    if scores.clusters is not None:
        weighted = scores.clusters.sums(weighted.T).T
    return weighted[:-1], weighted[-1]


def _of_seeds(scores: Scores, mean: Float64[np.ndarray, "K"], seed: int) -> Float64[np.ndarray, "R K"]:
    """How far the arms' scores are off in samples of seeds, the same seeds for all arms."""
    S = scores.values.shape[1]
    effects = (scores.values @ scores.weights) / scores.weights.sum() - mean[:, None]
    drawn = generator(seed, "study", "seeds", S)
    off = drawn.multinomial(S, np.full(S, 1 / S), RESAMPLES) @ effects.T / S
    tails = np.sqrt((S - 1) / drawn.chisquare(S - 1, RESAMPLES))
    return off * math.sqrt(S / (S - 1)) * tails[:, None]


def _shares_of_best(drawn: Float64[np.ndarray, "R K"]) -> Float64[np.ndarray, "K"]:
    """How often each arm has the highest score; arms that are level share it."""
    level = np.isclose(drawn, drawn.max(1, keepdims=True), rtol=0, atol=1e-12)
    return (level / level.sum(1, keepdims=True)).mean(0)


def compare_arms(verdict: Verdict, reference: str, among: Sequence[str]) -> list[Compared]:
    """Arms against the reference, each but itself; Holm's correction is over these.

    Raises:
        MidblockError: one of them has no scores.
    """
    arms = verdict.scores.arms
    for name in (reference, *among):
        if name not in arms:
            raise MidblockError(f"{name} has no scores to compare")
    at = arms.index(reference)
    others = [arms.index(arm) for arm in among if arm != reference]
    differences = [verdict.drawn[:, place] - verdict.drawn[:, at] for place in others]
    raw = [_p(each) for each in differences]
    means = verdict.scores.means
    return [
        _compared(arms[place], reference, float(means[place] - means[at]), drawn, p, corrected)
        for place, drawn, p, corrected in zip(others, differences, raw, holm(raw), strict=True)
    ]


def _compared(
    arm: str, reference: str, difference: float, drawn: Float64[np.ndarray, "R"], p: float, p_holm: float
) -> Compared:
    low, high = quantiles(drawn)
    verdict = UNDECIDED if p_holm > 1 - LEVEL else "better" if difference > 0 else "worse"
    # a difference is found when its interval of so many standard errors leaves 0 out, in POWER of the studies
    reach = (high - low) / 2 * (1 + _POWER_OVER_LEVEL)
    return Compared(arm, reference, difference, low, high, p, p_holm, reach, verdict)


_POWER_OVER_LEVEL = 0.8416 / 1.9600  # normal quantiles of POWER and of the interval's upper end


def _p(drawn: Float64[np.ndarray, "R"]) -> float:
    """Two-sided: twice the share of draws on the smaller side of 0."""
    below, above = (drawn <= 0).sum(), (drawn >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1)))
