"""Metrics of one weight before and after tuning, W_b and W_s; float64 throughout, in pieces that fit the cache.

Sources: P1 (Frobenius norms), P2 (rotation of the top singular spaces, drift of the top block), Björck and Golub 1973
(principal angles).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from midblock.metrics.spectra import entropy

PIECE = 1 << 18  # entries converted to float64 at a time: both tensors' pieces stay in the second-level cache
WORKERS = os.cpu_count() or 1
EXACT_SIDE = 2048  # widest small side whose whole spectrum is computed unless asked for
OVERSAMPLING = 16
POWER_ITERATIONS = 4

NORM_METRICS = frozenset({"delta_fro", "delta_rel", "changed_fraction"})
DELTA_METRICS = frozenset({"delta_spectral", "delta_stable_rank", "delta_effective_rank"})
ROTATION_METRICS = frozenset({"subspace_rotation_max", "subspace_rotation_mean", "block_drift"})


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

    def metrics(self) -> dict[str, float]:
        """The norms these sums make: `NORM_METRICS` by name."""
        fro = self.change**0.5
        unscaled = float("nan") if fro else 0.0  # the base is all zeros: no change is still none
        relative = fro / self.base**0.5 if self.base else unscaled
        return {
            "delta_fro": fro,
            "delta_rel": relative,
            "changed_fraction": self.changed / self.count if self.count else float("nan"),
        }


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


def delta_metrics(change: Float[Tensor, "m n"], *, exact: bool = False) -> dict[str, float]:
    """Spectral norm, stable rank and effective rank of a weight change.

    Above `EXACT_SIDE` only the largest singular values are computed (randomised, power iterations) and the effective
    rank, which needs them all, is left out unless `exact`.
    """
    energy = float(change.double().square().sum())
    if energy == 0:
        return {"delta_spectral": 0.0}
    if min(change.shape) > EXACT_SIDE and not exact:
        return _from_spectrum(_low_rank(change.double(), 8)[1].square(), energy)
    squared = torch.linalg.eigvalsh(_small_gram(change)).clamp(min=0).flip(0)
    return _from_spectrum(squared, energy) | {"delta_effective_rank": float(entropy(squared).exp())}


def delta_metrics_in_pieces(
    before: Float[Tensor, "m n"], after: Float[Tensor, "m n"], *, exact: bool = False
) -> dict[str, float]:
    """The same of after − before, whose float64 change is never there as a whole: for embeddings and heads."""
    if before.shape[0] < before.shape[1]:
        before, after = before.T, after.T
    side = before.shape[1]
    rows = max(1, (PIECE * 16) // side)

    def changes() -> Iterator[Tensor]:
        for start in range(0, len(before), rows):
            yield after[start : start + rows].double() - before[start : start + rows].double()

    energy = sum(float(piece.square().sum()) for piece in changes())
    if energy == 0:
        return {"delta_spectral": 0.0}
    if side > EXACT_SIDE and not exact:
        stream = torch.Generator().manual_seed(0)
        Q = torch.randn(side, 8 + OVERSAMPLING, dtype=torch.float64, generator=stream)
        for _ in range(POWER_ITERATIONS + 1):
            Q = torch.linalg.qr(_gram_times(changes(), Q)).Q
        squared = torch.linalg.eigvalsh(Q.T @ _gram_times(changes(), Q)).clamp(min=0).flip(0)
        return _from_spectrum(squared, energy)
    gram = torch.zeros(side, side, dtype=torch.float64)
    for piece in changes():
        gram += piece.T @ piece
    squared = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)
    return _from_spectrum(squared, energy) | {"delta_effective_rank": float(entropy(squared).exp())}


def _gram_times(pieces: Iterable[Tensor], Q: Tensor) -> Tensor:
    """ΔᵀΔQ from Δ's rows, piece by piece."""
    total = torch.zeros_like(Q)
    for piece in pieces:
        total += piece.T @ (piece @ Q)
    return total


def delta_metrics_of_spectrum(sigma: Float[Tensor, " r"]) -> dict[str, float]:
    """The same from the singular values themselves, as a low-rank adapter gives them."""
    squared = sigma.double().square()
    energy = float(squared.sum())
    if energy == 0:
        return {"delta_spectral": 0.0}
    return _from_spectrum(squared, energy) | {"delta_effective_rank": float(entropy(squared).exp())}


def _from_spectrum(squared: Tensor, energy: float) -> dict[str, float]:
    largest = float(squared[0])
    return {"delta_spectral": largest**0.5, "delta_stable_rank": energy / largest}


def rotation_metrics(
    base: Float[Tensor, "m n"], tuned: Float[Tensor, "m n"], rank: int, *, exact: bool = False
) -> dict[str, float]:
    """Principal angles between the top-k singular spaces of W_b and W_s, and the change's share in the base's block.

    Args:
        rank: k; cut to half of the smaller side, because spaces that fill everything cannot rotate.

    Returns:
        Largest and mean angle (radians, over left and right spaces) and ‖U_kᵀΔV_k‖_F/‖Δ‖_F.
    """
    k = max(1, min(rank, min(base.shape) // 2))
    base, tuned = base.double(), tuned.double()
    change = tuned - base
    size = change.norm()
    if size == 0:
        return {"subspace_rotation_max": 0.0, "subspace_rotation_mean": 0.0}
    U, _, V = top_singular(base, k, exact=exact)
    U_tuned, _, V_tuned = top_singular(tuned, k, exact=exact)
    angles = torch.cat([principal_angles(U, U_tuned), principal_angles(V, V_tuned)])
    return {
        "subspace_rotation_max": float(angles.max()),
        "subspace_rotation_mean": float(angles.mean()),
        "block_drift": float((U.T @ change @ V).norm() / size),
    }


def top_singular(W: Float[Tensor, "m n"], k: int, *, exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest singular triplets U (m×k), σ (k), V (n×k): exact up to `EXACT_SIDE`, randomised beyond."""
    if min(W.shape) > EXACT_SIDE and not exact:
        U, sigma, V = _low_rank(W, k)
        return U[:, :k], sigma[:k], V[:, :k]
    if W.shape[0] < W.shape[1]:
        V, sigma, U = top_singular(W.T, k, exact=exact)
        return U, sigma, V
    V = torch.linalg.eigh(W.T @ W).eigenvectors[:, -k:].flip(1)
    image = W @ V
    sigma = image.norm(dim=0)
    # QR instead of a division by σ keeps U orthonormal where singular values lie close together.
    return torch.linalg.qr(image).Q, sigma, V


def principal_angles(first: Float[Tensor, "n k"], second: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    """Angles between two subspaces given by orthonormal columns, radians.

    Large angles are taken from their cosine and small ones from their sine, so that none loses digits.
    """
    inner = first.T @ second
    cosine = torch.linalg.svdvals(inner).clamp(max=1)
    sine = torch.linalg.svdvals(second - first @ inner).clamp(max=1).flip(0)
    return torch.where(cosine > 0.7, sine.asin(), cosine.acos())


def _low_rank(W: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.svd_lowrank(W, q=min(k + OVERSAMPLING, *W.shape), niter=POWER_ITERATIONS)


def _small_gram(W: Tensor) -> Tensor:
    """W's Gram matrix on its smaller side, summed over pieces of the larger one, float64."""
    tall = W if W.shape[0] >= W.shape[1] else W.T
    rows = max(1, (PIECE * 16) // tall.shape[1])
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for start in range(0, len(tall), rows):
        piece = tall[start : start + rows].double()
        gram += piece.T @ piece
    return gram
