"""Metrics that need K ≥ 2 augmented views of each prompt: LiDAR, DiME, InfoNCE.

A view is the prompt with tokens dropped at random; its first three stay. Every metric is a function of `Views`. Cost: K
forward passes more, and for each set of n prompts decompositions of min(n, D)² and a solution of min(K·n, D)². Sources:
LiDAR, Thilak et al. 2024; DiME, Skean et al. 2023 (published by P1 as |S(view 1) − S(view 2)|); InfoNCE, van den Oord
et al. 2018. Formulas: docs/metrics.md, "One model".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midblock.base import generator
from midblock.data import TokenizedPrompt
from midblock.metrics.geometry import unit_rows
from midblock.metrics.spectra import ENTRIES, eigenvalues, entropy, subset_spectra

VIEWS = 2
RIDGE = 1e-4


def drop_tokens(prompts: Sequence[TokenizedPrompt], rate: float, view: int, seed: int) -> list[TokenizedPrompt]:
    """One view of each prompt: tokens left out with probability `rate`; the first three and the answer's first stay."""
    dropped = []
    for prompt in prompts:
        stream = generator(seed, "view", view, prompt.index)
        keep = stream.random(len(prompt.input_ids)) >= rate
        keep[:3] = True
        keep[prompt.answer_start : prompt.answer_start + 1] = True
        ids = tuple(token for token, kept in zip(prompt.input_ids, keep, strict=True) if kept)
        start, stop = (int(keep[:place].sum()) for place in (prompt.answer_start, prompt.answer_end))
        kept = replace(prompt, input_ids=ids, answer_start=start)
        dropped.append(kept if prompt.answer_stop is None else replace(kept, answer_stop=stop))
    return dropped


@dataclass(frozen=True, eq=False)
class Views:
    """Pooled states of K views of N prompts at one layer, float64, and G equally large sets of prompts to keep."""

    views: Float[Tensor, "K N D"]
    keep: Int[Tensor, "G n"]

    @classmethod
    def whole(cls, views: Float[Tensor, "K N D"]) -> Views:
        """All prompts, as one set."""
        return cls(views.double(), torch.arange(views.shape[1])[None])


def lidar(views: Views, ridge: float = RIDGE) -> Float[Tensor, " G"]:
    """Entropy of eig(S_w^{-1/2} S_b S_w^{-1/2}), S_w within and S_b between prompts, S_w + δI, δ = 1e-4.

    With B the centred prompt means (n×D) the same non-zero eigenvalues are those of B S_w^{-1} Bᵀ/n, n×n, and by
    Woodbury's identity S_w^{-1} needs only the Gram matrix of the deviations, so where they are few no D×D matrix is
    formed.
    """
    K = len(views.views)
    values = []
    for rows in views.keep:
        chosen = views.views[:, rows]
        means = chosen.mean(0)
        between = means - means.mean(0)
        within = (chosen - means).flatten(0, 1) / (K * len(rows)) ** 0.5
        few = len(within) <= within.shape[1]
        whitened = (_by_rows if few else _by_columns)(between, within, ridge)
        values.append(entropy(eigenvalues((whitened + whitened.T) / 2)))
    return torch.stack(values)


def _by_rows(between: Float[Tensor, "n D"], within: Float[Tensor, "m D"], ridge: float) -> Float[Tensor, "n n"]:
    """B S_w^{-1} Bᵀ, with a solution of m²."""
    inner = torch.eye(len(within), dtype=within.dtype) * ridge + within @ within.T
    cross = between @ within.T
    return (between @ between.T - cross @ torch.linalg.solve(inner, cross.T)) / ridge


def _by_columns(between: Float[Tensor, "n D"], within: Float[Tensor, "m D"], ridge: float) -> Float[Tensor, "D D"]:
    """L^{-1} BᵀB L^{-T} with LLᵀ = S_w: the same non-zero eigenvalues."""
    inner = torch.eye(within.shape[1], dtype=within.dtype) * ridge + within.T @ within
    L = torch.linalg.cholesky(inner)
    half = torch.linalg.solve_triangular(L, between.T @ between, upper=False)
    return torch.linalg.solve_triangular(L, half.T, upper=False)


def dime(views: Views) -> Float[Tensor, " G"]:
    """|S(view 1) − S(view 2)|, S the matrix entropy (nats) of the rows scaled to unit length; as published by P1."""
    first, second = (entropy(subset_spectra(unit_rows(view), views.keep)) for view in views.views[:2])
    return (first - second).abs()


def infonce(views: Views, temperature: float = 0.1) -> Float[Tensor, " N"]:
    """InfoNCE loss of each prompt: −ln of the share its own second view gets among all second views, nats.

    NaN for a prompt one of whose views is zero: it has no cosine, and is nobody's rival.
    """
    first, second = (unit_rows(view) for view in views.views[:2])
    known = (first != 0).any(1) & (second != 0).any(1)
    rows = max(1, ENTRIES // len(second))
    scores = ((part @ second.T / temperature).masked_fill(~known, -torch.inf) for part in first.split(rows))
    losses = (-torch.log_softmax(part, dim=1).diagonal(at * rows) for at, part in enumerate(scores))
    return torch.cat(list(losses)).masked_fill(~known, torch.nan)
