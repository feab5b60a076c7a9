"""The leading singular values and directions of one matrix W (m × n), for metrics of weights and RPSFT's factors alike.

Exact up to a smaller side of 2,048: eigenvectors of the smaller Gram matrix. Beyond, a random block is multiplied by it
again and again and Ritz vectors are taken from all products (block Krylov: Musco and Musco 2015), restarted until the
leading k directions stand. How well they stand is stated: with eigenvalues θ of the Gram matrix G and the residual
R = GV − VΘ of the first k, the sine of the largest angle to the true space is at most ‖R‖/(θ_k − θ_{k+1}) (Davis and
Kahan 1970). One product costs 4·m·n·(k + margin) operations; a slowly falling spectrum takes some forty of them.
Described in docs/metrics.md, "Weights".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from midblock.base import derive

EXACT_UP_TO = 2048  # of the smaller side: an eigendecomposition of that size takes seconds
CROSSOVER = 4  # beyond it a random block wins only while it is narrower than the smaller side over this
DEPTH = 8  # products from one start to the next: the basis is that many times as wide as the block
RESTARTS = 30  # at most
TOLERANCE = 1e-5  # of the residual, see `Leading`
TIED = 1e-8  # of θ₁: a gap behind the k-th value narrower than this is none
ROWS = 8192  # a chunk of a tall matrix in float64

Product = Callable[[Float64[Tensor, "n w"]], Float64[Tensor, "n w"]]


@dataclass(frozen=True, eq=False)
class TopSingular:
    """The k leading singular triplets, float64.

    Attributes:
        U, V: singular vectors, as columns; UᵀWV is diagonal.
        S: singular values, descending.
        residual: bound on the sine of the largest angle between V and the true space; 0 where it is exact.
    """

    U: Float64[Tensor, "m k"]
    S: Float64[Tensor, "k"]
    V: Float64[Tensor, "n k"]
    residual: float = 0.0

    @property
    def transposed(self) -> TopSingular:
        """The same of Wᵀ."""
        return TopSingular(self.V, self.S, self.U, self.residual)


@dataclass(frozen=True, eq=False)
class Leading:
    """Leading eigenpairs of a Gram matrix, and how far they are from standing.

    Attributes:
        vectors: as columns.
        values: θ, descending.
        residual: for a space, the bound of the module docstring; for a value alone, ‖R‖/θ₁.
    """

    vectors: Float64[Tensor, "n w"]
    values: Float64[Tensor, "w"]
    residual: float


def is_exact(side: int, k: int) -> bool:
    """Whether the exact way is taken for a matrix with this smaller side."""
    return side <= EXACT_UP_TO or CROSSOVER * width(k) >= side


def width(k: int) -> int:
    """Columns of the random block: k and a margin, a quarter of k and at least 16."""
    return k + max(16, k // 4)


def top_singular(W: Float[Tensor, "m n"], k: int, *, exact: bool | None = None, seed: int = 0) -> TopSingular:
    """The k largest singular triplets of a matrix.

    The last step, a QR of WV and the SVD of its k × k triangle, makes both sides orthonormal and UᵀWV diagonal however
    W is conditioned (a Gram matrix knows nothing of σ below 1e-8 σ₁).

    Args:
        W: any floating dtype; the arithmetic is float64, on W's device.
        k: at most min(m, n).
        exact: force one of the two ways; by default by size.
        seed: of the random block, which is drawn on the CPU so that every device gets the same.
    """
    if W.shape[0] < W.shape[1]:
        return top_singular(W.mT, k, exact=exact, seed=seed).transposed
    exact = is_exact(W.shape[1], k) if exact is None else exact
    if exact:
        V, residual = torch.linalg.eigh(_gram(W)).eigenvectors[:, -k:], 0.0
    else:
        found = leading_space(gram_product(W), W.shape[1], k, seed=seed, device=W.device)
        V, residual = found.vectors, found.residual
    Q, R = torch.linalg.qr(_times(W, V))
    left, S, right = torch.linalg.svd(R)
    return TopSingular(Q @ left, S, V @ right.mT, residual)


def leading_space(product: Product, side: int, k: int, *, seed: int = 0, device: torch.device | str = "cpu") -> Leading:
    """The space of the k leading eigenvectors of a Gram matrix, of which only the product with a block is needed."""

    def residual(theta: Tensor, R: Tensor) -> float:
        behind = float(theta[k]) if k < len(theta) else 0.0
        gap = max(float(theta[k - 1]) - behind, TIED * float(theta[0]))
        return float(torch.linalg.matrix_norm(R[:, :k], 2)) / gap if gap > 0 else 0.0

    return _iterate(product, _start(side, k, seed).to(device), k, residual)


def leading_value(product: Product, side: int, *, seed: int = 0, device: torch.device | str = "cpu") -> Leading:
    """The largest eigenvalue of a Gram matrix, whose vector may still be a mixture of several nearly as large."""

    def residual(theta: Tensor, R: Tensor) -> float:
        return float(R[:, 0].norm() / theta[0]) if theta[0] > 0 else 0.0

    return _iterate(product, _start(side, 1, seed).to(device), 1, residual)


def gram_product(W: Float[Tensor, "m n"]) -> Product:
    """WᵀW times a block of columns."""
    W = W.double()
    return lambda Q: W.mT @ (W @ Q)


def _start(side: int, k: int, seed: int) -> Float64[Tensor, "n w"]:
    """A random block, or everything where two blocks would be more than that."""
    columns = width(k) if 2 * width(k) <= side else side
    draw = torch.Generator().manual_seed(derive(seed, "top_singular", side, k))
    return torch.linalg.qr(torch.randn(side, columns, generator=draw, dtype=torch.float64)).Q


def _iterate(
    product: Product, block: Float64[Tensor, "n w"], k: int, residual: Callable[[Tensor, Tensor], float]
) -> Leading:
    for _ in range(RESTARTS):
        block, theta, R = _ritz(product, block)
        found = Leading(block[:, :k], theta[:k], residual(theta, R))
        if found.residual <= TOLERANCE:
            break
    return found


def _ritz(product: Product, block: Float64[Tensor, "n w"]) -> tuple[Tensor, Tensor, Tensor]:
    """The w leading Ritz vectors of the block and its products, their values θ, and GV − VΘ."""
    side, w = block.shape
    basis, images = block, product(block)
    # At least two, or nothing would move; a basis beyond half of everything costs more than it saves.
    depth = min(DEPTH, max(2, side // (2 * w)), side // w)
    for _ in range(depth - 1):
        new = images[:, -w:]
        for _ in range(2):  # once leaves what rounding has put back
            new = torch.linalg.qr(new - basis @ (basis.mT @ new)).Q
        basis, images = torch.cat([basis, new], dim=1), torch.cat([images, product(new)], dim=1)
    small = basis.mT @ images
    theta, Y = torch.linalg.eigh((small + small.mT) / 2)
    theta, Y = theta[-w:].flip(0), Y[:, -w:].flip(1)
    V = basis @ Y
    return V, theta, images @ Y - V * theta


def _gram(tall: Float[Tensor, "m n"]) -> Float64[Tensor, "n n"]:
    total = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for chunk in tall.split(ROWS):
        piece = chunk.double()
        total += piece.mT @ piece
    return total


def _times(tall: Float[Tensor, "m n"], V: Float64[Tensor, "n k"]) -> Float64[Tensor, "m k"]:
    return torch.cat([chunk.double() @ V for chunk in tall.split(ROWS)])
