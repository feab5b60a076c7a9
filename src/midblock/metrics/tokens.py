"""Metrics of one prompt's tokens: entropy, curvature, sparsity, sinks of H (T×D), for a batch of prompts at once.

Every metric is a function of `Tokens`. Rows that do not count (padding, other regions) are taken out of every sum and
every maximum; a prompt too short for a metric gets NaN and is left out of the mean. Cost: an eigendecomposition of
min(T, D)² a prompt for the entropy. Source: P1, section 3; the published code counts padded rows, adds a ridge to the
Gram matrix, and takes sparsity's maximum over the batch. Formulas: docs/metrics.md, "One model".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midblock.metrics.spectra import eigenvalues, entropy, renyi2

PerPrompt = Float[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of prompts' token states, and which of them count."""

    states: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]

    @cached_property
    def gram(self) -> Float[Tensor, "B s s"]:
        """Gram matrix, float64, of the tokens scaled to unit length, on the smaller side.

        Tokens that do not count are zero rows; a token that is zero has no direction and adds nothing.
        """
        states = self.states.double()
        if not bool(self.mask.all()):
            states = states.masked_fill(~self.mask.unsqueeze(-1), 0)
        length = states.norm(dim=-1)
        scale = torch.where(length > 0, 1 / length, 0.0)
        tokens, width = states.shape[1:]
        if tokens <= width:
            # Scaling the T×T products is cheaper than scaling the T×D states.
            return (states @ states.mT) * scale.unsqueeze(1) * scale.unsqueeze(2)
        unit = states * scale.unsqueeze(-1)
        return unit.mT @ unit

    @cached_property
    def most(self) -> PerPrompt:
        """The largest entropy possible: ln min(T, D) of each prompt."""
        return self.mask.sum(1).clamp(max=self.states.shape[-1]).double().log()


def pooled_mean(states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """Mean state over the tokens that count, in float64; NaN where none does."""
    if bool(mask.all()):
        return states.mean(1, dtype=torch.float64)
    kept = states.masked_fill(~mask.unsqueeze(-1), 0)
    return kept.sum(1, dtype=torch.float64) / mask.sum(1, keepdim=True)


def prompt_entropy(tokens: Tokens) -> PerPrompt:
    """Von Neumann entropy over ln min(T, D)."""
    return _relative(entropy(eigenvalues(tokens.gram)), tokens)


def prompt_entropy_renyi2(tokens: Tokens) -> PerPrompt:
    """Rényi-2 entropy over ln min(T, D)."""
    return _relative(renyi2(tokens.gram), tokens)


def _relative(entropies: Tensor, tokens: Tokens) -> Tensor:
    return (entropies / tokens.most).masked_fill(tokens.most <= 0, torch.nan)


def curvature(tokens: Tokens) -> PerPrompt:
    """Mean angle between successive steps h_{t+1}−h_t, over π; steps of zero length have no angle and are left out."""
    mask = tokens.mask
    steps = tokens.states.double().diff(dim=1)
    length = steps.norm(dim=-1)
    valid = mask[:, :-2] & mask[:, 1:-1] & mask[:, 2:] & (length[:, :-1] > 0) & (length[:, 1:] > 0)
    cosine = (steps[:, :-1] * steps[:, 1:]).sum(-1) / (length[:, :-1] * length[:, 1:])
    angle = torch.where(valid, cosine, 1.0).clamp(-1, 1).acos() / torch.pi
    return (angle * valid).sum(1) / valid.sum(1)


def sparsity(tokens: Tokens) -> PerPrompt:
    """Share of entries smaller than 1 % of the prompt's largest, by absolute value."""
    states, mask = tokens.states, tokens.mask
    kept = states if bool(mask.all()) else states.masked_fill(~mask.unsqueeze(-1), 0)
    largest = torch.linalg.vector_norm(kept, torch.inf, dim=(1, 2), keepdim=True)
    # In float32 at least: 1 % of the largest, rounded to the states' bfloat16, would take in or leave out whole steps.
    threshold = 0.01 * largest.to(torch.promote_types(largest.dtype, torch.float32))
    # Rows that do not count are zeros now, all of them below the threshold: they are taken off again.
    below = (kept.abs() < threshold).sum((1, 2)) - (~mask).sum(1) * states.shape[-1]
    return below.clamp(min=0).double() / (mask.sum(1) * states.shape[-1])


def sink_share(tokens: Tokens) -> PerPrompt:
    """Share of ‖H‖² that the prompt's largest token holds."""
    norms = torch.linalg.vector_norm(tokens.states, dim=-1, dtype=torch.float64)
    squares = norms.square().masked_fill(~tokens.mask, 0)
    return squares.amax(1) / squares.sum(1)
