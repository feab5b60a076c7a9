"""Metrics of what two models predict at the same positions: how far apart, and whether they agree.

Functions of `Predictions`; each is a mean over a prompt's positions: of Σ_v p_b (ln p_b − ln p_s), and of whether the
likeliest tokens are the same. Cost: one pass over B·P·V probabilities. Source: P1 reports agreement and KL of the logit
lens. Described in docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

PerPrompt = Float[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Log-probabilities of the next token, of both models, at P positions of each prompt."""

    base: Float[Tensor, "B P V"]
    tuned: Float[Tensor, "B P V"]


def logit_kl(predictions: Predictions) -> PerPrompt:
    """KL(base‖tuned) in nats."""
    return divergence(predictions.base, predictions.tuned).mean(1)


def divergence(p: Float[Tensor, "*n V"], q: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    """KL(p‖q) in nats, of log-probabilities."""
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def logit_agreement(predictions: Predictions) -> PerPrompt:
    """Share of positions whose likeliest token is the same."""
    base, tuned = predictions.base, predictions.tuned
    return (base.argmax(-1) == tuned.argmax(-1)).to(base.dtype).mean(1)
