"""Geometry of one model's pooled states X (N prompts × D): ranks, norms, spread, dimension.

Every function takes the rows to keep as G equally large index sets, so that the whole sample and all jackknife folds
are one batched call. Sources: P1, section 3 and appendix; TwoNN: Facco et al. 2017.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midblock.metrics.spectra import eigenvalues, entropy, subset_spectra

Values = dict[str, Float[Tensor, " G"]]

SPECTRAL_METRICS = frozenset(
    {"effective_rank", "effective_rank_normalized", "spectral_norm", "condition_number", "rank_deficiency"}
)
GEOMETRY_METRICS = SPECTRAL_METRICS | {"dataset_entropy", "effective_rank_centered", "gini", "intrinsic_dimension"}


def geometry(
    X: Float[Tensor, "N D"],
    keep: Int[Tensor, "G n"] | None = None,
    wanted: Collection[str] = GEOMETRY_METRICS,
    apart: Float[Tensor, "N N"] | None = None,
) -> Values:
    """Metrics of one layer's pooled states.

    Args:
        X: pooled states, a row a prompt, float64.
        keep: index sets; the whole sample when left out.
        wanted: names of `GEOMETRY_METRICS`; what no wanted metric needs is not computed.
        apart: `distances(X)`, where several calls can share them.

    Returns:
        Metric name → one value per index set.
    """
    keep = torch.arange(len(X))[None] if keep is None else keep
    X = X.double()
    values: Values = {}
    if "dataset_entropy" in wanted:
        values["dataset_entropy"] = dataset_entropy(X, keep)
    if not SPECTRAL_METRICS.isdisjoint(wanted):
        values |= _spectral(X, keep)
    if "effective_rank_centered" in wanted:
        values["effective_rank_centered"] = _effective_rank_centered(X, keep)
    if "gini" in wanted:
        values["gini"] = gini(X.norm(dim=1)[keep])
    if "intrinsic_dimension" in wanted:
        values["intrinsic_dimension"] = intrinsic_dimension(X, keep, apart)
    return {name: value for name, value in values.items() if name in wanted}


def dataset_entropy(X: Float[Tensor, "N D"], keep: Int[Tensor, "G n"]) -> Float[Tensor, " G"]:
    """Von Neumann entropy of the rows scaled to unit length, over ln min(n, D)."""
    unit = X / X.norm(dim=1, keepdim=True)
    return entropy(subset_spectra(unit, keep)) / math.log(min(keep.shape[1], X.shape[1]))


def _spectral(X: Tensor, keep: Tensor) -> Values:
    """Everything that follows from the singular values σ of X."""
    most = min(keep.shape[1], X.shape[1])
    squared = subset_spectra(X, keep)[:, -most:].clamp(min=0)
    sigma = squared.sqrt()
    rank = entropy(squared).exp()
    largest = sigma[:, -1:]
    return {
        "effective_rank": rank,
        "effective_rank_normalized": rank / most,
        "spectral_norm": sigma[:, -1],
        "condition_number": _condition(X, keep, sigma),
        "rank_deficiency": (sigma <= 0.01 * largest).double().mean(1),
    }


def _condition(X: Tensor, keep: Tensor, sigma: Tensor) -> Tensor:
    """Largest over smallest non-zero σ.

    Squaring loses the small ones: below 1e-6 of the largest, a Gram matrix's eigenvalues are rounding. There the
    singular values are computed themselves.
    """
    rough = sigma[:, -1] / sigma[:, 0]
    if bool((rough < 1e6).all()):
        return rough
    exact = torch.stack([torch.linalg.svdvals(X[rows]) for rows in keep])
    floor = exact[:, :1] * max(X.shape) * torch.finfo(torch.float64).eps
    smallest = exact.masked_fill(exact <= floor, torch.inf).amin(1)
    return exact[:, 0] / smallest


def _effective_rank_centered(X: Tensor, keep: Tensor) -> Tensor:
    if keep.shape[1] <= X.shape[1]:
        X = X - X.mean(0)  # the set's own mean goes below; a large shared one would swallow the digits first
        gram = X @ X.T
        gram = gram[keep[:, :, None], keep[:, None, :]]
        gram = gram - gram.mean(1, keepdim=True) - gram.mean(2, keepdim=True) + gram.mean((1, 2), keepdim=True)
        return entropy(eigenvalues(gram)).exp()
    centred = [X[rows] - X[rows].mean(0) for rows in keep]
    return torch.stack([entropy(eigenvalues(part.T @ part)).exp() for part in centred])


def gini(values: Float[Tensor, "G n"]) -> Float[Tensor, " G"]:
    """Gini coefficient: mean absolute difference over twice the mean, 0 when all are equal."""
    n = values.shape[1]
    rank = torch.arange(1, n + 1, dtype=torch.float64)
    ordered = values.double().sort(dim=1).values
    return ((2 * rank - n - 1) * ordered).sum(1) / (n * ordered.sum(1))


def distances(X: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """Euclidean distances between rows; infinite from a row to itself.

    Differences are taken before squares, which loses no digits where rows share a large mean.
    """
    return torch.cdist(X, X, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)


def intrinsic_dimension(
    X: Float[Tensor, "N D"], keep: Int[Tensor, "G n"], apart: Float[Tensor, "N N"] | None = None
) -> Float[Tensor, " G"]:
    """TwoNN: n / Σ ln(r₂/r₁), with r₁ and r₂ the distances to the nearest and second nearest neighbour.

    Rows with a duplicate (r₁ = 0) carry no scale and are left out; fewer than 3 rows give NaN.

    Args:
        apart: `distances(X)`, where they are at hand.
    """
    if keep.shape[1] < 3:
        return torch.full((len(keep),), torch.nan, dtype=torch.float64)
    apart = distances(X) if apart is None else apart
    near = apart[keep[:, :, None], keep[:, None, :]].topk(2, dim=2, largest=False).values
    usable = near[..., 0] > 0
    log_ratio = torch.where(usable, near[..., 1] / near[..., 0], 1.0).log()
    return usable.sum(1) / log_ratio.sum(1)
