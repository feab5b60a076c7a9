"""The rival that keeps the leading singular directions of a change, of each matrix as many as pay best.

Ranks are chosen over all matrices together: the next direction is the one that holds most of ‖Δ‖² a byte, until the
budget is full; this is the best that low-rank changes of these bytes can do in the Frobenius norm. Directions are the
eigenvectors V of the Gram matrix of the smaller side, and Δ V Vᵀ is what is kept, as precise as Δ. Float64; a
vector is a matrix of one row and a parameter of more dimensions a stack of matrices. Cost: two eigendecompositions of a
matrix. Source: Eckart and Young 1936.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from midblock.base import MidblockError
from midblock.carriers.moved import Moved, moved
from midblock.carriers.rivals import LowRank, Rival
from midblock.checkpoints import LowRankDelta
from midblock.checkpoints.parameters import Weights


@dataclass(frozen=True)
class _Direction:
    """One singular direction.

    Attributes:
        of: the parameter, and which of its matrices.
        worth: its share of ‖Δ‖², a byte.
        cost: bytes.
    """

    of: tuple[str, int]
    worth: float
    cost: int


def truncated(base: Weights, tuned: Weights, budget: int, dtype: torch.dtype | None = None) -> Rival:
    """The truncated singular value decomposition of a change that fits a budget.

    Args:
        budget: bytes.
        dtype: that factors are kept in; the widest of both models' when left out.

    Raises:
        MidblockError: the models do not differ, or do not fit each other, or the budget holds no direction.

    Example:
        >>> truncated(base_model, tuned_model, budget=1000).nbytes <= 1000
        True
    """
    directions: list[_Direction] = []
    whole = 0.0
    for each in moved(base, tuned, dtype):
        for at, matrix in enumerate(_matrices(each)):
            energies, cost = _energies(matrix), _cost(matrix, each.dtype)
            whole += float(matrix.square().sum())
            directions += [_Direction((each.name, at), energy / cost, cost) for energy in energies if energy > 0]
    if not directions:
        raise MidblockError("the tuned model's weights are the base's: there is no change to decompose")
    ranks, nbytes = _chosen(directions, budget)
    if not ranks:
        cheapest = min(direction.cost for direction in directions)
        raise MidblockError(f"{budget} bytes hold no direction of a change, the smallest takes {cheapest}")
    changes: dict[str, LowRank] = {}
    left = 0.0
    for each in moved(base, tuned, dtype):
        kept = [_leading(matrix, ranks[each.name, at], each.dtype) for at, matrix in enumerate(_matrices(each))]
        left += sum(
            float((matrix - delta.dense()).square().sum()) for matrix, delta in zip(_matrices(each), kept, strict=True)
        )
        if any(delta.rank for delta in kept):
            changes[each.name] = LowRank(tuple(each.after.shape), tuple(kept))
    return Rival("svd", nbytes, 1 - left / whole, changes)


def _matrices(each: Moved) -> Float64[Tensor, "k m n"]:
    change = each.change
    if change.ndim < 2:
        return change.reshape(1, 1, -1)
    return change.reshape(-1, *change.shape[-2:])


def _gram(matrix: Float64[Tensor, "m n"]) -> Float64[Tensor, "k k"]:
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _energies(matrix: Float64[Tensor, "m n"]) -> list[float]:
    """σ², descending."""
    found: list[float] = torch.linalg.eigvalsh(_gram(matrix)).flip(0).tolist()
    return found


def _cost(matrix: Tensor, dtype: torch.dtype) -> int:
    """Bytes of a direction: a column and a row; of a vector just its entries."""
    rows, columns = matrix.shape
    return (columns if rows == 1 else rows + columns) * dtype.itemsize


def _chosen(directions: list[_Direction], budget: int) -> tuple[Counter[tuple[str, int]], int]:
    """Ranks by matrix, and the bytes of them all; a matrix whose next direction does not fit gets no later one."""
    ranks: Counter[tuple[str, int]] = Counter()
    closed: set[tuple[str, int]] = set()
    spent = 0
    for each in sorted(directions, key=lambda direction: -direction.worth):
        if each.of in closed:
            continue
        if spent + each.cost > budget:
            closed.add(each.of)
            continue
        ranks[each.of] += 1
        spent += each.cost
    return ranks, spent


def _leading(matrix: Float64[Tensor, "m n"], rank: int, dtype: torch.dtype) -> LowRankDelta:
    """Δ V Vᵀ of the leading directions, its factors of like size and rounded to the type that they are kept in."""
    rows, columns = matrix.shape
    if rows == 1:
        return LowRankDelta(torch.ones(1, rank, dtype=dtype), matrix[:rank].to(dtype), 1.0)
    vectors = torch.linalg.eigh(_gram(matrix)).eigenvectors[:, min(rows, columns) - rank :]
    left, right = (vectors, vectors.T @ matrix) if rows <= columns else (matrix @ vectors, vectors.T)
    sizes = (left.norm(dim=0) / right.norm(dim=1).clamp(min=1e-300)).clamp(min=1e-300).sqrt()
    return LowRankDelta((left / sizes).to(dtype), (right * sizes[:, None]).to(dtype), 1.0)
