"""Metrics of one prompt's tokens: entropy, curvature, sparsity, sinks of H (T×D), for a batch of prompts at once.

Every metric is a function of `Tokens`. Rows that do not count (padding, other regions) are taken out of every sum and
every maximum; a prompt too short for a metric gets NaN and is left out of the mean. Cost: an eigendecomposition of
min(T, D)² a prompt for the entropy. Source: P1, section 3; the published code counts padded rows, adds a ridge to the
Gram matrix, and takes sparsity's maximum over the batch. Formulas: docs/metrics.md, "One model".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midblock.metrics.spectra import eigenvalues, entropy, renyi2

PerPrompt = Float[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of prompts' token states, and which of them count.

    Attributes:
        among: the same states where more of them count, whose products serve these too.
    """

    states: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]
    among: Tokens | None = None

    @cached_property
    def gram(self) -> Float[Tensor, "B s s"]:
        """Gram matrix, float64, of the tokens scaled to unit length, on the smaller side.

        Tokens that do not count are zero rows; a token that is zero has no direction and adds nothing.
        """
        tokens, width = self.states.shape[1:]
        if self.among is not None and tokens <= width:
            return self.among.gram.masked_fill(~(self.mask.unsqueeze(1) & self.mask.unsqueeze(2)), 0)
        states = self.states.double()
        if not bool(self.mask.all()):
            states = states.masked_fill(~self.mask.unsqueeze(-1), 0)
        length = states.norm(dim=-1)
        scale = torch.where(length > 0, 1 / length, 0.0)
        if tokens <= width:
            # Scaling the T×T products is cheaper than scaling the T×D states.
            return (states @ states.mT) * scale.unsqueeze(1) * scale.unsqueeze(2)
        unit = states * scale.unsqueeze(-1)
        return unit.mT @ unit

    @cached_property
    def sizes(self) -> Float[Tensor, "B T D"]:
        """The states' entries without their signs."""
        return self.states.abs() if self.among is None else self.among.sizes

    @cached_property
    def largest(self) -> Float[Tensor, "B T"]:
        """The largest entry of each token, by absolute value."""
        return self.sizes.amax(-1) if self.among is None else self.among.largest

    @cached_property
    def norms(self) -> Float[Tensor, "B T"]:
        """Each token's length, in float64."""
        if self.among is not None:
            return self.among.norms
        return torch.linalg.vector_norm(self.states, dim=-1, dtype=torch.float64)

    @cached_property
    def most(self) -> PerPrompt:
        """The largest entropy possible: ln min(T, D) of each prompt."""
        return self.mask.sum(1).clamp(max=self.states.shape[-1]).double().log()


def pooled_mean(states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """Mean state over the tokens that count, in float64; NaN where none does."""
    return pooled_means(states, [mask])[:, 0]


def pooled_means(states: Float[Tensor, "B T D"], masks: Sequence[Bool[Tensor, "B T"]]) -> Float[Tensor, "B S D"]:
    """Mean states over S sets of tokens, in float64, the first of which holds all others and nearly the same tokens."""
    most = masks[0]
    kept = states if bool(most.all()) else states.masked_fill(~most.unsqueeze(-1), 0)
    total = kept.sum(1, dtype=torch.float64)
    found = []
    for mask in masks:
        prompt, token = (most & ~mask).nonzero(as_tuple=True)
        sums = total.index_add(0, prompt, -states[prompt, token].double()) if len(prompt) else total
        found.append(sums / mask.sum(1, keepdim=True))
    return torch.stack(found, dim=1)


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
    mask, largest = tokens.mask, tokens.largest.masked_fill(~tokens.mask, 0).amax(1)
    # In float32 at least: 1 % of the largest, rounded to the states' bfloat16, would take in or leave out whole steps.
    threshold = 0.01 * largest.to(torch.promote_types(largest.dtype, torch.float32))
    below = (tokens.sizes < threshold[:, None, None]).sum(-1) * mask
    return below.sum(1).double() / (mask.sum(1) * tokens.states.shape[-1])


def sink_share(tokens: Tokens) -> PerPrompt:
    """Share of ‖H‖² that the prompt's largest token holds."""
    squares = tokens.norms.square().masked_fill(~tokens.mask, 0)
    return squares.amax(1) / squares.sum(1)
