"""Geometry of one model's pooled states X (N prompts × D): ranks, norms, spread, dimension.

Every metric is a function of `Pooled`: the states with the rows to keep as G equally large index sets, so that the
whole sample and all jackknife folds are one batched call, and metrics of one spectrum compute it once. Cost: an
eigendecomposition of min(n, D)² for each set. Sources: P1, section 3 and appendix; TwoNN: Facco et al. 2017. Formulas:
docs/metrics.md, "One model".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midblock.metrics.neighbours import SAME, Points
from midblock.metrics.spectra import eigenvalues, entropy, subset_spectra

PerSet = Float[Tensor, " G"]


@dataclass(frozen=True, eq=False)
class States:
    """One model's pooled states at one layer, and what all index sets share.

    Attributes:
        X: a row a prompt, float64.
    """

    X: Float[Tensor, "N D"]

    @classmethod
    def of(cls, X: Float[Tensor, "N D"]) -> States:
        return cls(X.double())

    @cached_property
    def norms(self) -> Float[Tensor, " N"]:
        """Length of each row."""
        return self.X.norm(dim=1)

    @property
    def first(self) -> Int[Tensor, " N"]:
        """For each row the place of the first one that is the same, within the rounding of sums in float64."""
        return self.points.first

    @cached_property
    def points(self) -> Points:
        """The different rows, with the nearest others of each."""
        return Points.of(self.X)


@dataclass(frozen=True, eq=False)
class Pooled:
    """Pooled states, and G equally large sets of rows to keep."""

    states: States
    keep: Int[Tensor, "G n"]

    @classmethod
    def whole(cls, X: Float[Tensor, "N D"]) -> Pooled:
        """All rows, as one set."""
        return cls(States.of(X), torch.arange(len(X))[None])

    @property
    def most(self) -> int:
        """The largest rank possible."""
        return min(self.keep.shape[1], self.states.X.shape[1])

    @cached_property
    def squared(self) -> Float[Tensor, "G most"]:
        """Squared singular values of each set, ascending."""
        return subset_spectra(self.states.X, self.keep)[:, -self.most :].clamp(min=0)

    @cached_property
    def sigma(self) -> Float[Tensor, "G most"]:
        """Singular values of each set, ascending."""
        return self.squared.sqrt()


def l2_norm(pooled: Pooled) -> Float[Tensor, " N"]:
    """Length of each prompt's mean state."""
    return pooled.states.norms


def dataset_entropy(pooled: Pooled) -> PerSet:
    """Von Neumann entropy of the rows scaled to unit length, over ln min(n, D); a zero row adds nothing."""
    return entropy(subset_spectra(unit_rows(pooled.states.X), pooled.keep)) / math.log(pooled.most)


def effective_rank(pooled: Pooled) -> PerSet:
    """Exponential of the entropy of σ²."""
    return entropy(pooled.squared).exp()


def effective_rank_normalized(pooled: Pooled) -> PerSet:
    """Effective rank over min(n, D)."""
    return effective_rank(pooled) / pooled.most


def effective_rank_centered(pooled: Pooled) -> PerSet:
    """Effective rank after each set's own mean is taken out."""
    X, keep = pooled.states.X, pooled.keep
    if keep.shape[1] <= X.shape[1]:
        X = centred(X)  # the set's own mean goes below; a large shared one would swallow the digits first
        return entropy(subset_spectra(X, keep, centre=True)).exp()
    spectra = (eigenvalues(part.T @ part) for part in (centred(X[rows]) for rows in keep))
    return torch.stack([entropy(spectrum).exp() for spectrum in spectra])


def spectral_norm(pooled: Pooled) -> PerSet:
    """Largest σ."""
    return pooled.sigma[:, -1]


def condition_number(pooled: Pooled) -> PerSet:
    """Largest over smallest non-zero σ.

    Squaring loses the small ones: below 1e-6 of the largest, a Gram matrix's eigenvalues are rounding. There the
    singular values are computed themselves.
    """
    sigma, X = pooled.sigma, pooled.states.X
    rough = sigma[:, -1] / sigma[:, 0]
    if bool((rough < 1e6).all()):
        return rough
    exact = torch.stack([torch.linalg.svdvals(X[rows]) for rows in pooled.keep])
    if not bool((exact[:, 0] > 0).all()):  # all states are zero
        return torch.full_like(rough, torch.nan)
    floor = exact[:, :1] * max(X.shape) * torch.finfo(torch.float64).eps
    smallest = exact.masked_fill(exact <= floor, torch.inf).amin(1)
    return exact[:, 0] / smallest


def rank_deficiency(pooled: Pooled) -> PerSet:
    """Share of σ at or below 1 % of the largest."""
    return (pooled.sigma <= 0.01 * pooled.sigma[:, -1:]).double().mean(1)


def gini(pooled: Pooled) -> PerSet:
    """Gini coefficient of the rows' lengths."""
    return gini_of(pooled.states.norms[pooled.keep])


def gini_of(values: Float[Tensor, "G n"]) -> PerSet:
    """Gini coefficient: mean absolute difference over twice the mean, 0 when all are equal."""
    n = values.shape[1]
    rank = torch.arange(1, n + 1, dtype=torch.float64)
    ordered = values.double().sort(dim=1).values
    return ((2 * rank - n - 1) * ordered).sum(1) / (n * ordered.sum(1))


def centred(X: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The rows with their mean taken out; zeros where all are the same, of which only rounding would be left."""
    rest = X - X.mean(0)
    return rest if bool(rest.norm() > SAME * X.norm()) else torch.zeros_like(X)


def unit_rows(X: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The rows at unit length; a zero row has no direction and stays zero."""
    length = X.norm(dim=1, keepdim=True)
    return X / torch.where(length > 0, length, 1.0)


def intrinsic_dimension(pooled: Pooled) -> PerSet:
    """TwoNN: n / Σ ln(r₂/r₁), with r₁ and r₂ the distances to the nearest and second nearest neighbour.

    Points are the different rows: two copies lie at one distance from every third row, and would raise the estimate
    without bound. Fewer than 3 give NaN.
    """
    keep = pooled.keep
    if keep.shape[1] < 3:
        return torch.full((len(keep),), torch.nan, dtype=torch.float64)
    found = []
    for rows in keep:
        near = pooled.states.points.two_nearest(rows)
        near = near[near[:, 1].isfinite()]
        found.append(len(near) / (near[:, 1] / near[:, 0]).log().sum())
    return torch.stack(found)
