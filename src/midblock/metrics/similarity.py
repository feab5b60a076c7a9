"""Base against tuned: how similar two sets of pooled states X_b and X_s (N prompts × D, paired by row) are.

As in `geometry`, every function takes G equally large index sets, the whole sample being one of them. CKA needs no
recomputation for a set: with 0/1 weights m the sums it is made of are mᵀ(K∘L)m, (Km)∘(Lm) and mᵀKm.
Sources: P1; debiased CKA: Song et al. 2012; Procrustes: Ding et al. 2021.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor

Values = dict[str, Float[Tensor, " G"]]

SIMILARITY_METRICS = frozenset(
    {
        "cka",
        "cka_debiased",
        "cosine_centered",
        "change_intensity_relative",
        "change_increment",
        "mean_shift",
        "mean_shift_relative",
        "procrustes",
    }
)


def similarity(
    base: Float[Tensor, "N D"],
    tuned: Float[Tensor, "N D"],
    keep: Int[Tensor, "G n"] | None = None,
    received: Float[Tensor, "N D"] | None = None,
    wanted: Collection[str] = SIMILARITY_METRICS,
) -> Values:
    """Paired metrics of one layer.

    Args:
        base, tuned: pooled states at this layer, float64.
        keep: index sets; the whole sample when left out.
        received: the difference tuned − base one layer below, for `change_increment`; none above the final norm.
        wanted: names of `SIMILARITY_METRICS`; what takes long is computed only if wanted.

    Returns:
        Metric name → one value per index set.
    """
    keep = torch.arange(len(base))[None] if keep is None else keep
    base, tuned = base.double(), tuned.double()
    change = tuned - base
    scale = base.norm(dim=1)[keep].mean(1)
    values = {"mean_shift": change[keep].mean(1).norm(dim=1)}
    values["mean_shift_relative"] = values["mean_shift"] / scale
    values["change_intensity_relative"] = change.norm(dim=1)[keep].mean(1) / scale
    if received is not None:
        values["change_increment"] = (change - received).norm(dim=1)[keep].mean(1) / scale
    if not {"cka", "cka_debiased"}.isdisjoint(wanted):
        values |= cka(base, tuned, keep)
    if "cosine_centered" in wanted:
        values["cosine_centered"] = cosine_centered(base, tuned, keep)
    if "procrustes" in wanted:
        values["procrustes"] = procrustes_distance(base, tuned, keep)
    return {name: value for name, value in values.items() if name in wanted}


def centred_gram(X: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """Linear kernel of the centred rows; centring first keeps a large shared mean from swallowing the digits."""
    X = X - X.mean(0)
    return X @ X.T


def cka(base: Float[Tensor, "N D"], tuned: Float[Tensor, "N D"], keep: Int[Tensor, "G n"]) -> Values:
    """Linear CKA, biased (as published) and debiased (unbiased HSIC, zero diagonals)."""
    K, L = centred_gram(base), centred_gram(tuned)
    masks = torch.zeros(len(K), len(keep), dtype=K.dtype).scatter_(0, keep.T, 1.0)
    return _cka_of_grams(K, L, masks)


def _cka_of_grams(K: Tensor, L: Tensor, masks: Tensor) -> Values:
    """CKA for each column of 0/1 weights in `masks` (N×G)."""
    biased, debiased = {}, {}
    for name, A, B in (("KL", K, L), ("KK", K, K), ("LL", L, L)):
        biased[name] = _hsic(A, B, masks, unbiased=False)
        debiased[name] = _hsic(_hollow(A), _hollow(B), masks, unbiased=True)
    unbiased = debiased["KL"] / (debiased["KK"] * debiased["LL"]).clamp(min=0).sqrt()
    return {
        "cka": biased["KL"] / (biased["KK"] * biased["LL"]).sqrt(),
        # Of three prompts the unbiased HSIC is 0/0: what is left is rounding.
        "cka_debiased": unbiased.masked_fill(masks.sum(0) < 4, torch.nan),
    }


def _hollow(K: Tensor) -> Tensor:
    return K - torch.diag_embed(K.diagonal())


def _hsic(K: Tensor, L: Tensor, masks: Tensor, *, unbiased: bool) -> Tensor:
    """HSIC up to a factor that CKA divides out; `unbiased` expects zero diagonals."""
    n = masks.sum(0)
    product = (masks * ((K * L) @ masks)).sum(0)
    rows_K, rows_L = K @ masks * masks, L @ masks * masks
    cross = (rows_K * rows_L).sum(0)
    totals = rows_K.sum(0) * rows_L.sum(0)
    if unbiased:
        return product + totals / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)
    return product + totals / n**2 - 2 * cross / n


def cka_permuted(
    base: Float[Tensor, "N D"], tuned: Float[Tensor, "N D"], permutations: Int[Tensor, "P N"]
) -> dict[str, Float[Tensor, " P"]]:
    """CKA after shuffling which tuned row belongs to which base row: what unrelated prompts would score."""
    K, L = centred_gram(base), centred_gram(tuned)
    n = len(K)
    everyone = torch.ones(n, 1, dtype=K.dtype)
    own = {
        flag: (_hsic(A, A, everyone, unbiased=flag) * _hsic(B, B, everyone, unbiased=flag)).sqrt()
        for flag, A, B in ((False, K, L), (True, _hollow(K), _hollow(L)))
    }
    # Shuffling moves rows only: row sums go along, and of K∘L just the sum has to be taken anew.
    k, h = K.diagonal(), L.diagonal()
    rows_K, rows_L = K.sum(1) - k, L.sum(1) - h
    product = torch.stack([(K * L[order][:, order]).sum() for order in permutations])
    diagonal = h[permutations] @ k
    cross = rows_L[permutations] @ rows_K
    totals = rows_K.sum() * rows_L.sum()
    debiased = (product - diagonal) + totals / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)
    # K and L are centred, so their whole rows sum to zero and the biased HSIC is the product alone.
    return {"cka": product / own[False], "cka_debiased": debiased / own[True]}


def cosine_centered(
    base: Float[Tensor, "N D"], tuned: Float[Tensor, "N D"], keep: Int[Tensor, "G n"]
) -> Float[Tensor, " G"]:
    """Mean cosine of paired rows after each side's mean over the set is taken out."""
    sets = [(base[rows] - base[rows].mean(0), tuned[rows] - tuned[rows].mean(0)) for rows in keep]
    return torch.stack([torch.cosine_similarity(ours, theirs, dim=1, eps=0).mean() for ours, theirs in sets])


def per_prompt(base: Float[Tensor, "N D"], tuned: Float[Tensor, "N D"]) -> dict[str, Float[Tensor, " N"]]:
    """The paired metrics that are plain means over prompts, a value a prompt."""
    return {
        "cosine_similarity": torch.cosine_similarity(base.double(), tuned.double(), dim=1, eps=0),
        "change_intensity": (tuned - base).double().norm(dim=1),
    }


def cosine_permuted(
    base: Float[Tensor, "N D"], tuned: Float[Tensor, "N D"], permutations: Int[Tensor, "P N"]
) -> Float[Tensor, " P"]:
    """Mean cosine between unrelated prompts: far above 0 where all states share a direction."""
    cosine = (base / base.norm(dim=1, keepdim=True)) @ (tuned / tuned.norm(dim=1, keepdim=True)).T
    return cosine[torch.arange(len(base)), permutations].mean(1)


def procrustes_distance(
    base: Float[Tensor, "N D"], tuned: Float[Tensor, "N D"], keep: Int[Tensor, "G n"]
) -> Float[Tensor, " G"]:
    """Orthogonal Procrustes distance 2 − 2‖X_bᵀX_s‖_* of centred rows scaled to unit Frobenius norm, 0 to 2.

    The nuclear norm is taken from n×n factors: with K = FFᵀ and L = HHᵀ it is that of FᵀH, whatever D is.
    """
    return torch.stack([_procrustes(_unit_factor(base[rows]), _unit_factor(tuned[rows])) for rows in keep])


def procrustes_permuted(
    base: Float[Tensor, "N D"], tuned: Float[Tensor, "N D"], permutations: Int[Tensor, "P N"]
) -> Float[Tensor, " P"]:
    """Procrustes distance between unrelated prompts."""
    ours, theirs = _unit_factor(base), _unit_factor(tuned)
    return torch.stack([_procrustes(ours, theirs[order]) for order in permutations])


def _unit_factor(X: Tensor) -> Tensor:
    """A factor, a row a prompt, of the Gram matrix of X's centred rows at unit norm; it has min(n, D) columns."""
    X = X - X.mean(0)
    X = X / X.norm()
    return torch.linalg.qr(X.T, mode="r").R.T if X.shape[0] < X.shape[1] else X


def _procrustes(ours: Tensor, theirs: Tensor) -> Tensor:
    return (2 - 2 * torch.linalg.svdvals(ours.T @ theirs).sum()).clamp(min=0)
