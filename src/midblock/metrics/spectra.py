"""Entropies and ranks of a spectrum, the shared arithmetic of every rank-like metric.

With p the eigenvalues over their sum: −Σ p ln p (Shannon), −ln Σ p² (Rényi of order 2). Cost: an eigendecomposition of
each Gram matrix; none for Rényi's. Formulas: docs/metrics.md.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

SMALL = 512  # rows of a matrix that an accelerator is no faster with
ENTRIES = 2**23  # numbers of the Gram matrices that are decomposed together: 64 MiB


def entropy(weights: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Shannon entropy −Σ p ln p in nats of non-negative weights, scaled to sum to one.

    Rounding can push a zero eigenvalue slightly below zero; such values count as zero.
    """
    weights = weights.clamp(min=0)
    p = weights / weights.sum(-1, keepdim=True)
    return -torch.special.xlogy(p, p).sum(-1)


def eigenvalues(gram: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n"]:
    """Eigenvalues of symmetric matrices, ascending; NaN for all matrices where one of them is not finite.

    Small ones are decomposed on the CPU wherever they are: an accelerator takes them one after the other, each for
    longer. There a batch is shared out, matrix by matrix: LAPACK's own threads only get in each other's way at a few
    hundred rows (three times slower on two cores).
    """
    if not bool(torch.isfinite(gram.sum())):
        return torch.full_like(gram[..., 0], torch.nan)
    if gram.device.type != "cpu" and gram.shape[-1] <= SMALL:
        return eigenvalues(gram.cpu()).to(gram.device)
    threads = torch.get_num_threads()
    if gram.device.type != "cpu" or gram.ndim < 3 or threads == 1:
        return torch.linalg.eigvalsh(gram)
    return torch.cat(list(single_threaded_workers(threads).map(torch.linalg.eigvalsh, gram.chunk(threads))))


@cache
def single_threaded_workers(count: int) -> ThreadPoolExecutor:
    """Threads in each of which torch uses one thread; made once, they wait without spinning."""
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def renyi2(gram: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """Rényi entropy of order 2, −ln Σ p², of a positive matrix's eigenvalues, without computing them."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 2 * trace.log() - (gram * gram).sum((-2, -1)).log()


def subset_spectra(X: Float[Tensor, "N D"], keep: Tensor, *, centre: bool = False) -> Float[Tensor, "G n"]:
    """Squared singular values of X restricted to each of G equally large sets of rows (G×n indices), ascending.

    One N×N Gram matrix serves all sets, which are submatrices of it, a few of them at a time; where rows outnumber
    columns each set has its own D×D one.

    Args:
        centre: take each set's own mean out of its rows; for n ≤ D.
    """
    if keep.shape[1] <= X.shape[1]:
        gram = X @ X.T
        found = []
        for part in keep.split(max(1, ENTRIES // keep.shape[1] ** 2)):
            each = gram[part].gather(2, part[:, None, :].expand(-1, part.shape[1], -1))
            if centre:
                each = each - each.mean(1, keepdim=True) - each.mean(2, keepdim=True) + each.mean((1, 2), keepdim=True)
            found.append(eigenvalues(each))
        return torch.cat(found)
    return torch.stack([eigenvalues(X[rows].T @ X[rows]) for rows in keep])
