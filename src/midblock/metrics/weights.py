"""Metrics of one weight before and after tuning, W_b and W_s; float64 throughout, in pieces that fit the cache.

Three statistics: `Sums` of squares (two readings of the weight), the `Spectrum` of the change Δ (one product of Δ with
itself), the top `Spaces` of both (two decompositions). Sources: P1 (Frobenius norms), P2 (rotation of the top singular
spaces, drift of the top block), Björck and Golub 1973 (principal angles). Formulas: docs/metrics.md, "Weights".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from midblock.metrics.spectra import entropy
from midblock.metrics.top_singular import Product, gram_product, is_exact, leading_value, top_singular

PIECE = 1 << 18  # entries converted to float64 at a time: both tensors' pieces stay in the second-level cache
WORKERS = os.cpu_count() or 1


@dataclass(frozen=True)
class Sums:
    """What norms are made of; sums of parts add up to the sums of the whole.

    Attributes:
        base: Σ W_b².
        change: Σ (W_s − W_b)².
        changed: number of entries that differ.
        count: number of entries.
    """

    base: float = 0.0
    change: float = 0.0
    changed: int = 0
    count: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.base + other.base, self.change + other.change, self.changed + other.changed, self.count + other.count
        )


def delta_fro(sums: Sums) -> float:
    """‖Δ‖_F."""
    return sums.change**0.5


def delta_rel(sums: Sums) -> float:
    """‖Δ‖_F/‖W_b‖_F; 0 where a base of zeros did not change, NaN where it did."""
    fro = delta_fro(sums)
    unscaled = float("nan") if fro else 0.0
    return fro / sums.base**0.5 if sums.base else unscaled


def expert_delta_rel(total: Sums) -> float | None:
    """The same of one expert's weights together."""
    return delta_rel(total)


def changed_fraction(sums: Sums) -> float:
    """Share of entries that differ."""
    return sums.changed / sums.count if sums.count else float("nan")


class _Workspace(threading.local):
    """Two float64 buffers for each thread, made once: fresh ones would cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.before, self.change = torch.empty(2, PIECE, dtype=torch.float64)


_workspace = _Workspace()


def sums(
    base: Float[Tensor, "*shape"],
    tuned: Float[Tensor, "*shape"],
    *,
    changed: bool = True,
    each: Callable[..., Iterable[Sums]] = map,
) -> Sums:
    """Sums over all entries of one tensor; changed entries are counted only if wanted (it takes a third pass).

    Args:
        each: how the parts are gone through; the `map` of `single_threaded_workers` shares them out. Threads that do
            not wait for each other stay fast on a busy machine, where the barriers of a parallel BLAS do not.
    """
    ours, theirs = base.detach().reshape(-1), tuned.detach().reshape(-1)

    def run(part: range) -> Sums:
        pieces = (range(at, min(at + PIECE, part.stop)) for at in range(part.start, part.stop, PIECE))
        return sum((_piece_sums(ours[p.start : p.stop], theirs[p.start : p.stop], changed) for p in pieces), Sums())

    n = len(ours)
    if n < PIECE // 8:
        return run(range(n))
    # Equal parts: a worker with a shorter one would wait for the other at every tensor.
    bounds = [n * worker // WORKERS for worker in range(WORKERS + 1)]
    return sum(each(run, [range(low, high) for low, high in pairwise(bounds)]), Sums())


def _piece_sums(ours: Tensor, theirs: Tensor, changed: bool) -> Sums:
    n = len(ours)
    before, change = _workspace.before[:n].copy_(ours), _workspace.change[:n].copy_(theirs)
    change.sub_(before)
    differing = int(torch.count_nonzero(change)) if changed else 0
    return Sums(float(torch.dot(before, before)), float(torch.dot(change, change)), differing, n)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Squared singular values of a weight change Δ.

    Attributes:
        squared: descending; where the smaller side is too wide for all of them, the largest alone.
        energy: ‖Δ‖²_F.
        whole: whether `squared` holds all that are not zero.
        residual: relative error that the largest may have at most.
    """

    squared: Float64[Tensor, " r"]
    energy: float
    whole: bool = True
    residual: float = 0.0

    @classmethod
    def of(cls, change: Float[Tensor, "m n"], *, exact: bool = False) -> Spectrum:
        """Of a change: the whole spectrum up to `EXACT_UP_TO` or if `exact`, else the largest value."""
        tall = change if change.shape[0] >= change.shape[1] else change.T
        rows = max(1, (PIECE * 16) // tall.shape[1])
        pieces = [tall[start : start + rows] for start in range(0, len(tall), rows)]
        return _spectrum(lambda: (piece.double() for piece in pieces), gram_product(tall), tall.shape[1], exact)

    @classmethod
    def of_pieces(cls, before: Float[Tensor, "m n"], after: Float[Tensor, "m n"], *, exact: bool = False) -> Spectrum:
        """Of after − before, whose float64 change is never there as a whole: for embeddings and heads."""
        if before.shape[0] < before.shape[1]:
            before, after = before.T, after.T
        rows = max(1, (PIECE * 16) // before.shape[1])

        def changes() -> Iterator[Tensor]:
            for start in range(0, len(before), rows):
                yield after[start : start + rows].double() - before[start : start + rows].double()

        return cls.of_changes(changes, before.shape[1], exact=exact)

    @classmethod
    def of_changes(cls, changes: Callable[[], Iterable[Tensor]], side: int, *, exact: bool = False) -> Spectrum:
        """Of a tall change that comes some rows at a time, in float64, as often as it is asked for.

        Args:
            side: its columns, no more than it has rows.
        """

        def product(Q: Tensor) -> Tensor:
            return sum((piece.T @ (piece @ Q) for piece in changes()), torch.zeros_like(Q))

        return _spectrum(changes, product, side, exact)

    @classmethod
    def of_values(cls, sigma: Float[Tensor, " r"]) -> Spectrum:
        """Of the singular values themselves, as a low-rank adapter gives them."""
        squared = sigma.double().square()
        return cls(squared, float(squared.sum()))


NO_CHANGE = Spectrum(torch.zeros(1, dtype=torch.float64), 0.0)


def _spectrum(pieces: Callable[[], Iterable[Tensor]], product: Product, side: int, exact: bool) -> Spectrum:
    energy = sum(float(piece.square().sum()) for piece in pieces())
    if energy == 0:
        return NO_CHANGE
    if not (exact or is_exact(side, 1)):
        found = leading_value(product, side)
        return Spectrum(found.values, energy, whole=False, residual=found.residual)
    gram = torch.zeros(side, side, dtype=torch.float64)
    for piece in pieces():
        gram += piece.T @ piece
    return Spectrum(torch.linalg.eigvalsh(gram).clamp(min=0).flip(0), energy)


def delta_spectral(spectrum: Spectrum) -> float:
    """σ₁(Δ)."""
    return float(spectrum.squared[0]) ** 0.5


def delta_stable_rank(spectrum: Spectrum) -> float | None:
    """‖Δ‖²_F/σ₁(Δ)²; none without a change."""
    return spectrum.energy / float(spectrum.squared[0]) if spectrum.energy else None


def delta_effective_rank(spectrum: Spectrum) -> float | None:
    """Exponential of the entropy of σ(Δ)²; none without a change, or where only the largest value is known."""
    return float(entropy(spectrum.squared).exp()) if spectrum.whole and spectrum.energy else None


@dataclass(frozen=True, eq=False)
class Spaces:
    """The top singular spaces of W_b and W_s, against each other and against the change.

    Attributes:
        angles: principal angles between the left and between the right spaces, radians.
        drift: ‖U_kᵀΔV_k‖_F/‖Δ‖_F with the base's spaces; None without a change.
        residual: the larger of the two decompositions' (`TopSingular`).
    """

    angles: Float64[Tensor, " two_k"]
    drift: float | None
    residual: float = 0.0

    @classmethod
    def of(cls, base: Float[Tensor, "m n"], tuned: Float[Tensor, "m n"], rank: int, *, exact: bool = False) -> Spaces:
        """Of two weights, by the very decomposition that RPSFT's factors come from.

        Args:
            rank: k; cut to half of the smaller side, because spaces that fill everything cannot rotate.
        """
        k = max(1, min(rank, min(base.shape) // 2))
        base, tuned = base.double(), tuned.double()
        change = tuned - base
        size = change.norm()
        if size == 0:
            return UNTURNED
        ours, theirs = (top_singular(W, k, exact=exact or None) for W in (base, tuned))
        angles = torch.cat([principal_angles(ours.U, theirs.U), principal_angles(ours.V, theirs.V)])
        drift = float((ours.U.T @ change @ ours.V).norm() / size)
        return cls(angles, drift, max(ours.residual, theirs.residual))


UNTURNED = Spaces(torch.zeros(2, dtype=torch.float64), None)


def subspace_rotation_max(spaces: Spaces) -> float:
    """Largest angle, left and right."""
    return float(spaces.angles.max())


def subspace_rotation_mean(spaces: Spaces) -> float:
    """Mean angle, left and right."""
    return float(spaces.angles.mean())


def block_drift(spaces: Spaces) -> float | None:
    """Share of the change inside the base's top block."""
    return spaces.drift


def expert_block_drift(spaces: Spaces) -> float | None:
    """The same of a matrix of one expert."""
    return block_drift(spaces)


def principal_angles(first: Float[Tensor, "n k"], second: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    """Angles between two subspaces given by orthonormal columns, radians.

    Large angles are taken from their cosine and small ones from their sine, so that none loses digits.
    """
    inner = first.T @ second
    cosine = torch.linalg.svdvals(inner).clamp(max=1)
    sine = torch.linalg.svdvals(second - first @ inner).clamp(max=1).flip(0)
    return torch.where(cosine > 0.7, sine.asin(), cosine.acos())
