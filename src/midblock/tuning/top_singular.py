"""The top k singular directions of one matrix: exactly through the smaller Gram matrix, or by random sketching."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from midblock.base import derive

EXACT_UP_TO = 2048  # of min(m, n): an eigendecomposition of that size takes seconds
CROSSOVER = 4  # beyond it sketching wins only while the sketch is narrower than min(m, n) over this
POWER_ITERATIONS = 6  # pretrained spectra fall slowly: fewer leave visible error in the last directions
ROWS = 8192  # a chunk of a tall matrix in float64

Triple = tuple[Float[Tensor, "m k"], Float[Tensor, "k"], Float[Tensor, "n k"]]


def is_exact(m: int, n: int, k: int) -> bool:
    """Whether the exact way is taken for a matrix of this shape."""
    return min(m, n) <= EXACT_UP_TO or CROSSOVER * sketch_width(m, n, k) >= min(m, n)


def sketch_width(m: int, n: int, k: int, oversample: int | None = None) -> int:
    """Columns of the random sketch: k and a margin (by default a quarter of k, at least 16)."""
    return min(k + (max(16, k // 4) if oversample is None else oversample), m, n)


def exact_top(weight: Float[Tensor, "m n"], k: int) -> Triple:
    """Top singular triples in float64: eigenvectors of the smaller Gram matrix, then a Rayleigh–Ritz step.

    A Gram matrix squares the condition number, so the σ below 1e-8 σ₁ it knows nothing of. The last step, a QR of W V
    and the SVD of its k × k triangle, makes both sides orthonormal and UᵀWV diagonal whatever the conditioning.

    Returns:
        (U, S, V) in float64, S descending.
    """
    if weight.shape[0] < weight.shape[1]:
        V, S, U = exact_top(weight.mT, k)
        return U, S, V
    gram = sum(chunk.mT @ chunk for chunk in map(torch.Tensor.double, weight.split(ROWS)))
    V = torch.linalg.eigh(gram).eigenvectors[:, -k:]
    Q, R = torch.linalg.qr(_times(weight, V))
    left, S, right = torch.linalg.svd(R)
    return Q @ left, S, V @ right.mT


def _times(tall: Float[Tensor, "m n"], V: Float64[Tensor, "n k"]) -> Float64[Tensor, "m k"]:
    return torch.cat([chunk.double() @ V for chunk in tall.split(ROWS)])


def sketched_top(
    weight: Float[Tensor, "m n"], k: int, seed: int, oversample: int | None, power_iterations: int
) -> Triple:
    """Top singular triples by randomised SVD (Halko, Martinsson and Tropp 2011), in float32 or wider.

    Each power iteration is followed by a QR, without which the sketch would collapse onto the first direction.

    Args:
        seed: of the random sketch, which is drawn on the CPU so that every device gets the same.

    Returns:
        (U, S, V), S descending.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    m, n = weight.shape
    draw = torch.Generator().manual_seed(derive(seed, "rpsft", m, n, k))
    sketch = torch.randn(n, sketch_width(m, n, k, oversample), generator=draw, dtype=weight.dtype)
    Q = torch.linalg.qr(weight @ sketch.to(weight.device)).Q
    for _ in range(power_iterations):
        Q = torch.linalg.qr(weight.mT @ Q).Q
        Q = torch.linalg.qr(weight @ Q).Q
    P, R = torch.linalg.qr(weight.mT @ Q)
    left, S, right = torch.linalg.svd(R.mT)
    return Q @ left[:, :k], S[:k], P @ right.mT[:, :k]
