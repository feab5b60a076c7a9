"""Metrics of a mixture of experts: how much work each expert gets, and how much the choice for a token changes.

A block runs k of E experts for each token and mixes them with weights. *Load* is what share of all choices an expert
gets, p_e = choices of e / choices in all, so that Σ p = 1; two loads are as far apart as their total variation,
½ Σ_e |p_s − p_b|, the share of choices that would have to go to another expert. *Choices* are compared token by token:
the share of the k experts that differ, and the Jensen–Shannon divergence of the mixing weights (scaled to a sum of 1),
in nats, at most ln 2, which is defined also where two tokens share no expert. With r_b, r_s the routers and x_b, x_s
what reaches them,

    change = r_b(x_b) against r_s(x_s),   own = r_b(x_b) against r_s(x_b),   reaction = r_s(x_b) against r_s(x_s).

The share that differs is a metric of sets, so change ≤ own + reaction; a router that did not move has own = 0. Loads
are functions of G equally large sets of prompts, choices give a mean over each prompt's tokens. Cost: tokens × E.
Formulas: docs/metrics.md, "Mixtures of experts".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PerSet = Float[Tensor, " G"]
PerPrompt = Float[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Loads:
    """How often each of E experts was chosen in each of N prompts, and G equally large sets of prompts to keep.

    Attributes:
        counts: of the model that the numbers are about.
        keep: the sets.
        base: of the base; None where one model is described.
    """

    counts: Float[Tensor, "N E"]
    keep: Int[Tensor, "G n"]
    base: Float[Tensor, "N E"] | None = None

    @property
    def shares(self) -> Float[Tensor, "G E"]:
        """Each expert's share of the choices."""
        return _shares(self.counts, self.keep)

    @property
    def moved(self) -> Float[Tensor, "G E"] | None:
        """How much larger each share is than in the base."""
        return None if self.base is None else self.shares - _shares(self.base, self.keep)


def _shares(counts: Float[Tensor, "N E"], keep: Int[Tensor, "G n"]) -> Float[Tensor, "G E"]:
    chosen = counts[keep].sum(1)
    return chosen / chosen.sum(1, keepdim=True)


def expert_load_entropy(loads: Loads) -> PerSet:
    """Entropy of the load over ln E: 1 where all experts get as much, 0 where one gets all."""
    return torch.special.entr(loads.shares).sum(1) / math.log(loads.counts.shape[1])


def expert_load_shift(loads: Loads) -> PerSet | None:
    """½ Σ_e |p_s − p_b|."""
    return None if loads.moved is None else loads.moved.abs().sum(1) / 2


def expert_load(loads: Loads) -> Float[Tensor, "G E"]:
    """p_e of each expert."""
    return loads.shares


def expert_load_change(loads: Loads) -> Float[Tensor, "G E"] | None:
    """p_s − p_b of each expert."""
    return loads.moved


@dataclass(frozen=True, eq=False)
class Routed:
    """A choice for each token of B prompts: which k experts, and each of E experts' share of the mix."""

    experts: Int[Tensor, "B T k"]
    shares: Float[Tensor, "B T E"]


@dataclass(frozen=True, eq=False)
class Routings:
    """What the routers of two models choose for the same tokens, and which of the tokens count.

    Attributes:
        base: r_b(x_b).
        tuned: r_s(x_s).
        alone: r_s(x_b); None where a router could not be asked.
    """

    base: Routed
    tuned: Routed
    mask: Bool[Tensor, "B T"]
    alone: Routed | None = None

    def differing(self, one: Routed | None, other: Routed | None) -> PerPrompt:
        """Mean share of a token's experts that differ; NaN where it cannot be told."""
        if one is None or other is None:
            return self._unknown
        same = (one.experts.unsqueeze(-1) == other.experts.unsqueeze(-2)).any(-1).double().mean(-1)
        return self._mean(1 - same)

    def divergence(self, one: Routed | None, other: Routed | None) -> PerPrompt:
        """Mean Jensen–Shannon divergence of the mixing weights, in nats."""
        if one is None or other is None:
            return self._unknown
        between = (one.shares + other.shares) / 2
        halves = (_entropy(one.shares) + _entropy(other.shares)) / 2
        return self._mean((_entropy(between) - halves).clamp(min=0))

    @property
    def _unknown(self) -> PerPrompt:
        return torch.full((len(self.mask),), torch.nan, dtype=torch.float64)

    def _mean(self, values: Float[Tensor, "B T"]) -> PerPrompt:
        return values.masked_fill(~self.mask, 0).sum(1) / self.mask.sum(1)


def _entropy(shares: Float[Tensor, "B T E"]) -> Float[Tensor, "B T"]:
    return torch.special.entr(shares).sum(-1)


def router_change(routings: Routings) -> PerPrompt:
    """Share of experts that differ, each model on its own states."""
    return routings.differing(routings.base, routings.tuned)


def router_change_own(routings: Routings) -> PerPrompt:
    """Share of experts that differ, both routers on what reaches the base's."""
    return routings.differing(routings.base, routings.alone)


def router_change_reaction(routings: Routings) -> PerPrompt:
    """Share of experts that differ, the tuned router on what reaches it and on what reaches the base's."""
    return routings.differing(routings.alone, routings.tuned)


def router_js(routings: Routings) -> PerPrompt:
    """Divergence of the mix, each model on its own states."""
    return routings.divergence(routings.base, routings.tuned)


def router_js_own(routings: Routings) -> PerPrompt:
    """Divergence of the mix, both routers on what reaches the base's."""
    return routings.divergence(routings.base, routings.alone)


def router_js_reaction(routings: Routings) -> PerPrompt:
    """Divergence of the mix, the tuned router on what reaches it and on what reaches the base's."""
    return routings.divergence(routings.alone, routings.tuned)
