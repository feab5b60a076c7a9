"""Base against tuned: how similar two sets of pooled states X_b and X_s (N prompts × D, paired by row) are.

As in `geometry`, every metric is a function of one statistic, `Pairs`, with G equally large index sets, the whole
sample being one of them. CKA needs no recomputation for a set: with 0/1 weights m the sums it is made of are
mᵀ(K∘L)m, (Km)∘(Lm) and mᵀKm (`kernels`). What unrelated prompts would score is a function of `Shuffled` pairs.
Cost: the smaller of N²·D and N·D² for each set and order; Procrustes a decomposition of min(n, D)² for each set.
Sources: P1; debiased CKA: Song et al. 2012; Procrustes: Ding et al. 2021. Formulas: docs/metrics.md, "Base against
tuned".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midblock.metrics.geometry import centred
from midblock.metrics.kernels import Kernels

FEW = 20  # permutations of a metric that takes a decomposition each
COSINES = 3000  # prompts up to which the cosines of all with all are cheaper than those of each order

PerSet = Float[Tensor, " G"]
PerPrompt = Float[Tensor, " N"]
PerOrder = Float[Tensor, " P"]


@dataclass(frozen=True, eq=False)
class Pairing:
    """Base and tuned states of the same prompts at one layer, and what all index sets share.

    Attributes:
        base, tuned: a row a prompt, float64.
        received: tuned − base one layer below, for `change_increment`; None above the final norm.
    """

    base: Float[Tensor, "N D"]
    tuned: Float[Tensor, "N D"]
    received: Float[Tensor, "N D"] | None = None

    @classmethod
    def of(
        cls, base: Float[Tensor, "N D"], tuned: Float[Tensor, "N D"], received: Float[Tensor, "N D"] | None = None
    ) -> Pairing:
        return cls(base.double(), tuned.double(), received)

    @cached_property
    def change(self) -> Float[Tensor, "N D"]:
        """tuned − base."""
        return self.tuned - self.base

    @cached_property
    def norms(self) -> PerPrompt:
        """Length of each base row."""
        return self.base.norm(dim=1)

    @cached_property
    def moved(self) -> PerPrompt:
        """Length of each row's change."""
        return self.change.norm(dim=1)

    @cached_property
    def kernels(self) -> Kernels:
        """K and L of both sides' rows; centring them first keeps a large shared mean from swallowing the digits."""
        return Kernels(centred(self.base), centred(self.tuned))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Paired states, and G equally large sets of rows to keep."""

    pairing: Pairing
    keep: Int[Tensor, "G n"]

    @classmethod
    def whole(
        cls, base: Float[Tensor, "N D"], tuned: Float[Tensor, "N D"], received: Float[Tensor, "N D"] | None = None
    ) -> Pairs:
        """All rows, as one set."""
        return cls(Pairing.of(base, tuned, received), torch.arange(len(base))[None])

    @cached_property
    def scale(self) -> PerSet:
        """Mean length of the base's rows."""
        return self.pairing.norms[self.keep].mean(1)

    @cached_property
    def shift(self) -> PerSet:
        """Length of the mean change."""
        change = self.pairing.change
        return torch.stack([change[rows].mean(0).norm() for rows in self.keep])

    @cached_property
    def masks(self) -> Float[Tensor, "N G"]:
        """The sets as columns of 0/1 weights."""
        N = len(self.pairing.base)
        return torch.zeros(N, len(self.keep), dtype=torch.float64).scatter_(0, self.keep.T, 1.0)

    @cached_property
    def products(self) -> tuple[PerSet, PerSet, PerSet]:
        """ΣK∘L, ΣK∘K and ΣL∘L of each set, the diagonals left out."""
        return self.pairing.kernels.products(self.masks)

    @cached_property
    def row_sums(self) -> tuple[Float[Tensor, "N G"], Float[Tensor, "N G"]]:
        """Row sums of K and of L within each set, the diagonals left out."""
        return self.pairing.kernels.row_sums(self.masks)


@dataclass(frozen=True, eq=False)
class Shuffled:
    """Paired states whose tuned rows are given to other base rows, in P orders: unrelated prompts."""

    pairing: Pairing
    orders: Int[Tensor, "P N"]

    @cached_property
    def products(self) -> PerOrder:
        """ΣK∘L of each order, the diagonals left out."""
        return self.pairing.kernels.shuffled(self.orders)

    @cached_property
    def whole(self) -> Pairs:
        """All rows, paired as they are."""
        return Pairs(self.pairing, torch.arange(len(self.pairing.base))[None])


def cosine_similarity(pairs: Pairs) -> PerPrompt:
    """Cosine between each prompt's two rows; NaN, which is counted out, where one of them is zero."""
    return torch.cosine_similarity(pairs.pairing.base, pairs.pairing.tuned, dim=1, eps=0)


def cosine_similarity_null(shuffled: Shuffled) -> PerOrder:
    """Mean cosine between unrelated prompts: far above 0 where all states share a direction."""
    return _cosine_of_orders(shuffled.pairing.base, shuffled.pairing.tuned, shuffled.orders)


def cosine_centered(pairs: Pairs) -> PerSet:
    """Mean cosine of paired rows after each side's mean over the set is taken out; a row that is the mean has none."""
    base, tuned = pairs.pairing.base, pairs.pairing.tuned

    def of(rows: Tensor) -> Tensor:
        return torch.cosine_similarity(centred(base[rows]), centred(tuned[rows]), dim=1, eps=0).nanmean()

    return torch.stack([of(rows) for rows in pairs.keep])


def cosine_centered_null(shuffled: Shuffled) -> PerOrder:
    """The same between unrelated prompts."""
    base, tuned = shuffled.pairing.base, shuffled.pairing.tuned
    return _cosine_of_orders(centred(base), centred(tuned), shuffled.orders)


def _cosine_of_orders(base: Tensor, tuned: Tensor, orders: Tensor) -> Tensor:
    """Mean cosine of the rows that each order pairs; pairs with a zero row have none and are counted out."""
    ours, theirs = base / base.norm(dim=1, keepdim=True), tuned / tuned.norm(dim=1, keepdim=True)
    if len(base) > COSINES:
        room = torch.empty_like(theirs)
        return torch.stack(
            [torch.index_select(theirs, 0, order, out=room).mul_(ours).sum(1).nanmean() for order in orders]
        )
    return (ours @ theirs.T)[torch.arange(len(base)), orders].nanmean(1)


def change_intensity(pairs: Pairs) -> PerPrompt:
    """Distance between each prompt's two rows."""
    return pairs.pairing.moved


def change_intensity_relative(pairs: Pairs) -> PerSet:
    """Mean distance between paired rows, over the base's mean length."""
    return pairs.pairing.moved[pairs.keep].mean(1) / pairs.scale


def change_increment(pairs: Pairs) -> PerSet | None:
    """Mean length of the change beyond what came from below, over the base's mean length."""
    pairing = pairs.pairing
    if pairing.received is None:
        return None
    return (pairing.change - pairing.received).norm(dim=1)[pairs.keep].mean(1) / pairs.scale


def mean_shift(pairs: Pairs) -> PerSet:
    """Distance between the two sides' means."""
    return pairs.shift


def mean_shift_relative(pairs: Pairs) -> PerSet:
    """Distance between the two sides' means, over the base's mean length."""
    return pairs.shift / pairs.scale


def mean_shift_debiased(pairs: Pairs) -> PerSet:
    """Distance between the two sides' means, of E‖x̄‖² = ‖μ‖² + tr(Σ)/n without the second term; NaN of one prompt.

    ‖x̄‖² − tr(S)/n estimates ‖μ‖² without bias; its root is cut at 0, where nothing is left.
    """
    n = pairs.keep.shape[1]
    changes = (pairs.pairing.change[rows] for rows in pairs.keep)
    noise = torch.stack([centred(change).square().sum() / (n - 1) / n for change in changes])
    return (pairs.shift.square() - noise).clamp(min=0).sqrt()


def cka(pairs: Pairs) -> PerSet:
    """Linear CKA, biased, as published."""
    both, ours, theirs = _hsics(pairs, unbiased=False)
    return both / (ours * theirs).sqrt()


def cka_debiased(pairs: Pairs) -> PerSet:
    """Linear CKA of unbiased HSIC (zero diagonals); NaN below four prompts, where it is 0/0 and rounding is left."""
    both, ours, theirs = _hsics(pairs, unbiased=True)
    return (both / (ours * theirs).clamp(min=0).sqrt()).masked_fill(pairs.masks.sum(0) < 4, torch.nan)


def _hsics(pairs: Pairs, *, unbiased: bool) -> list[PerSet]:
    """HSIC of K and L, of K and K, of L and L, up to a factor that CKA divides out."""
    found = []
    for product, (one, other) in zip(pairs.products, ((0, 1), (0, 0), (1, 1)), strict=True):
        k, h = (pairs.pairing.kernels.diagonals[side] for side in (one, other))
        rows_K, rows_L = pairs.row_sums[one], pairs.row_sums[other]
        if not unbiased:
            product = product + (k * h) @ pairs.masks
            rows_K, rows_L = rows_K + k[:, None] * pairs.masks, rows_L + h[:, None] * pairs.masks
        found.append(_hsic(product, rows_K, rows_L, pairs.masks.sum(0), unbiased=unbiased))
    return found


def _hsic(product: Tensor, rows_K: Tensor, rows_L: Tensor, n: Tensor | int, *, unbiased: bool) -> Tensor:
    """HSIC from ΣK∘L and the row sums, down the first dimension; `unbiased` wants both without diagonals."""
    cross, totals = (rows_K * rows_L).sum(0), rows_K.sum(0) * rows_L.sum(0)
    if unbiased:
        return product + totals / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)
    return product + totals / n**2 - 2 * cross / n


def cka_null(shuffled: Shuffled) -> PerOrder:
    """Biased CKA of unrelated prompts.

    K and L are centred, so their whole rows sum to zero and the biased HSIC is the product alone.
    """
    k, h = shuffled.pairing.kernels.diagonals
    _, ours, theirs = _hsics(shuffled.whole, unbiased=False)
    return (shuffled.products + h[shuffled.orders] @ k) / (ours * theirs).sqrt()


def cka_debiased_null(shuffled: Shuffled) -> PerOrder:
    """Debiased CKA of unrelated prompts.

    Shuffling moves rows only: row sums go along, and of K∘L just the sum has to be taken anew.
    """
    rows_K, rows_L = (rows[:, 0] for rows in shuffled.whole.row_sums)
    _, ours, theirs = _hsics(shuffled.whole, unbiased=True)
    found = _hsic(shuffled.products, rows_K[:, None], rows_L[shuffled.orders].T, len(rows_K), unbiased=True)
    return found / (ours * theirs).sqrt()


def procrustes(pairs: Pairs) -> PerSet:
    """Orthogonal Procrustes distance 2 − 2‖X_bᵀX_s‖_* of centred rows scaled to unit Frobenius norm, 0 to 2.

    The nuclear norm is taken from n×n factors: with K = FFᵀ and L = HHᵀ it is that of FᵀH, whatever D is.
    """
    base, tuned = pairs.pairing.base, pairs.pairing.tuned
    return torch.stack([_procrustes(_unit_factor(base[rows]), _unit_factor(tuned[rows])) for rows in pairs.keep])


def procrustes_null(shuffled: Shuffled) -> PerOrder:
    """Procrustes distance between unrelated prompts, for the first few orders."""
    ours, theirs = _unit_factor(shuffled.pairing.base), _unit_factor(shuffled.pairing.tuned)
    return torch.stack([_procrustes(ours, theirs[order]) for order in shuffled.orders[:FEW]])


def _unit_factor(X: Tensor) -> Tensor:
    """A factor, a row a prompt, of the Gram matrix of X's centred rows at unit norm; it has min(n, D) columns."""
    X = centred(X)
    X = X / X.norm()
    return torch.linalg.qr(X.T, mode="r").R.T if X.shape[0] < X.shape[1] else X


def _procrustes(ours: Tensor, theirs: Tensor) -> Tensor:
    product = ours.T @ theirs
    if not bool(torch.isfinite(product).all()):  # one side is a single point
        return product.new_tensor(torch.nan)
    return (2 - 2 * torch.linalg.svdvals(product).sum()).clamp(min=0)
