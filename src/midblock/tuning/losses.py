"""Losses of supervised fine-tuning: scored target tokens → (sum, count).

The division happens once, in the trainer, over the whole effective batch on all devices; so gradient accumulation,
sharding and unequal lengths leave the result what it would have been in one piece. Formulas, costs, sources and when
each loses: docs/tuning/losses.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midblock.base import MidblockError

LARGEST_WEIGHT = 16.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised."""

    loss: str = "nll"
    """`nll`, `dft`, `iw`, `kl` or `iw_published`."""

    iw_temperature: float = 1.0
    """τ of `iw`: sharpness of a sequence's weight, exp(τ·mean_t(ln p − ln p_ref)), at most 16."""

    kl_beta: float = 0.1
    """β of `kl`: weight of KL(p‖p_ref) over the answer's tokens."""

    reference: str | None = None
    """p_ref of `iw` and `kl` where the base is not at hand (`--method full`): a model reference, loaded as a second,
    frozen model. With LoRA the base itself serves, adapters switched off."""

    train_on_prompt: bool = False
    """Let the prompt's tokens count too, as P1 published; by default only the completion's do."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What the model thinks of the N target tokens of a batch.

    Attributes:
        log_probs: ln p_t, in nats, with its graph.
        row: which sequence of the batch each token belongs to.
        reference: ln p_ref,t of the same tokens, without a graph.
        divergence: KL(p‖p_ref) of the whole next-token distribution at each of them, in nats, with its graph.
    """

    log_probs: Float[Tensor, "N"]
    row: Int[Tensor, "N"]
    reference: Float[Tensor, "N"] | None = None
    divergence: Float[Tensor, "N"] | None = None


Summed = tuple[Float[Tensor, ""], int]


def nll(scored: Scored, objective: Objective) -> Summed:
    """−ln p_t."""
    return -scored.log_probs.sum(), len(scored.log_probs)


def dft(scored: Scored, objective: Objective) -> Summed:
    """−sg[p_t] ln p_t: tokens the model already finds likely weigh more (arXiv 2508.05629)."""
    return -(scored.log_probs.detach().exp() * scored.log_probs).sum(), len(scored.log_probs)


def iw(scored: Scored, objective: Objective) -> Summed:
    """−sg[w] ln p_t, with one importance weight w for each sequence."""
    weight = importance_weights(scored, objective.iw_temperature).detach()
    return -(weight * scored.log_probs).sum(), len(scored.log_probs)


def iw_published(scored: Scored, objective: Objective) -> Summed:
    """As `iw` in P2's code, which lets the gradient flow through the weight too."""
    weight = importance_weights(scored, objective.iw_temperature)
    return -(weight * scored.log_probs).sum(), len(scored.log_probs)


def kl(scored: Scored, objective: Objective) -> Summed:
    """−ln p_t + β·KL(p‖p_ref)."""
    if scored.divergence is None:
        raise MidblockError("the loss `kl` needs the reference's distribution")
    return (objective.kl_beta * scored.divergence - scored.log_probs).sum(), len(scored.log_probs)


def importance_weights(scored: Scored, temperature: float) -> Float[Tensor, "N"]:
    """w = min(exp(τ·mean_t(ln p_t − ln p_ref,t)), 16), the mean over each sequence's own target tokens.

    Raises:
        MidblockError: when there is no reference.
    """
    if scored.reference is None:
        raise MidblockError("importance weights need a reference model")
    gain = scored.log_probs - scored.reference
    rows = int(scored.row.max()) + 1 if len(scored.row) else 0
    total = gain.new_zeros(rows).index_add(0, scored.row, gain)
    count = gain.new_zeros(rows).index_add(0, scored.row, torch.ones_like(gain))
    mean = total / count.clamp(min=1)
    # min inside the exponential too, so that a large gain gives the cap instead of an infinity with no gradient
    capped = (temperature * mean).clamp(max=torch.tensor(LARGEST_WEIGHT).log().item())
    return capped.exp()[scored.row]


@dataclass(frozen=True)
class Loss:
    """A loss and what it wants to be given.

    Attributes:
        function: (scored, objective) → (sum over tokens, how many).
        reference: it needs ln p_ref of the target tokens.
        divergence: it needs the whole distribution of the reference.
        options: options that are about it, or about it and others that name them too.
        papers: that the model card names, by their keys there.
    """

    function: Callable[[Scored, Objective], Summed]
    reference: bool = False
    divergence: bool = False
    options: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()


LOSSES: Mapping[str, Loss] = {
    "nll": Loss(nll),
    "dft": Loss(dft, papers=("dft",)),
    "iw": Loss(iw, reference=True, options=("iw_temperature",)),
    "kl": Loss(kl, divergence=True, options=("kl_beta",)),
    "iw_published": Loss(iw_published, reference=True, options=("iw_temperature",)),
}
