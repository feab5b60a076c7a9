"""Metrics of one prompt's tokens: entropy, curvature, sparsity of H (T×D), for a batch of prompts at once.

Rows that do not count (padding, other regions) are taken out of every sum and every maximum; a prompt too short for a
metric gets NaN and is left out of the mean. Source: P1, section 3; the published code counts padded rows, adds a ridge
to the Gram matrix, and takes sparsity's maximum over the batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midblock.metrics.spectra import eigenvalues, entropy, renyi2

TOKEN_METRICS = ("prompt_entropy", "prompt_entropy_renyi2", "curvature", "sparsity")


def pooled_mean(states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """Mean state over the tokens that count, in float64; NaN where none does."""
    if bool(mask.all()):
        return states.mean(1, dtype=torch.float64)
    kept = states.masked_fill(~mask.unsqueeze(-1), 0)
    return kept.sum(1, dtype=torch.float64) / mask.sum(1, keepdim=True)


def prompt_entropies(states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B 2"]:
    """Von Neumann and Rényi-2 entropy of each prompt's tokens, over ln min(T, D) of that prompt, in float64.

    Tokens are scaled to unit length; the spectrum is that of the smaller Gram matrix. A token that is zero has no
    direction and adds nothing.
    """
    gram = _unit_gram(states.double(), mask)
    most = mask.sum(1).clamp(max=states.shape[-1]).double().log()
    both = torch.stack([entropy(eigenvalues(gram)), renyi2(gram)], dim=-1) / most.unsqueeze(-1)
    return both.masked_fill((most <= 0).unsqueeze(-1), torch.nan)


def _unit_gram(states: Tensor, mask: Tensor) -> Tensor:
    """Gram matrix of the tokens scaled to unit length, on the smaller side; tokens that do not count are zero rows."""
    if not bool(mask.all()):
        states = states.masked_fill(~mask.unsqueeze(-1), 0)
    length = states.norm(dim=-1)
    scale = torch.where(length > 0, 1 / length, 0.0)
    tokens, width = states.shape[1:]
    if tokens <= width:
        # Scaling the T×T products is cheaper than scaling the T×D states.
        return (states @ states.mT) * scale.unsqueeze(1) * scale.unsqueeze(2)
    unit = states * scale.unsqueeze(-1)
    return unit.mT @ unit


def curvature(states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Mean angle between successive steps h_{t+1}−h_t, over π; steps of zero length have no angle and are left out."""
    steps = states.double().diff(dim=1)
    length = steps.norm(dim=-1)
    valid = mask[:, :-2] & mask[:, 1:-1] & mask[:, 2:] & (length[:, :-1] > 0) & (length[:, 1:] > 0)
    cosine = (steps[:, :-1] * steps[:, 1:]).sum(-1) / (length[:, :-1] * length[:, 1:])
    angle = torch.where(valid, cosine, 1.0).clamp(-1, 1).acos() / torch.pi
    return (angle * valid).sum(1) / valid.sum(1)


def sparsity(states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Share of entries smaller than 1 % of the prompt's largest, by absolute value."""
    kept = states if bool(mask.all()) else states.masked_fill(~mask.unsqueeze(-1), 0)
    largest = torch.linalg.vector_norm(kept, torch.inf, dim=(1, 2), keepdim=True)
    # Rows that do not count are zeros now, all of them below the threshold: they are taken off again.
    below = (kept.abs() < 0.01 * largest).sum((1, 2)) - (~mask).sum(1) * states.shape[-1]
    return below.clamp(min=0).double() / (mask.sum(1) * states.shape[-1])


def token_statistics(states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B 4"]:
    """All of `TOKEN_METRICS`, a column each."""
    parts = [prompt_entropies(states, mask), curvature(states, mask)[:, None], sparsity(states, mask)[:, None]]
    return torch.cat(parts, dim=1)
