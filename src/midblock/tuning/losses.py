"""Losses of supervised fine-tuning: scored target tokens → (sum, count).

The division happens once, in the trainer, over the whole effective batch on all devices; so gradient accumulation,
sharding and unequal lengths leave the result what it would have been in one piece. Formulas, costs, sources and when
each loses: docs/tuning/losses.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from midblock.base import MidblockError

LARGEST_WEIGHT = 16.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised."""

    loss: str = "nll"
    """`nll`, `dft`, `eaft`, `stm`, `iw`, `kl` or `iw_published`."""

    iw_temperature: float = 1.0
    """τ of `iw`: sharpness of a sequence's weight, exp(τ·mean_t(ln p − ln p_ref)), at most 16."""

    kl_beta: float = 0.1
    """β of `kl`: weight of KL(p‖p_ref) over the answer's tokens."""

    eaft_alpha: float = 1.0
    """α of `eaft`: how much a token's entropy decides of its weight; at 0 every token counts alike."""

    eaft_top_k: int = 20
    """K of `eaft`: the likeliest tokens, over which the entropy is taken."""

    stm_threshold: float = 2.5
    """Of `stm`: target tokens whose perplexity under the base (1/p_ref) is above it are left out of the loss."""

    reference: str | None = None
    """p_ref of `iw`, `stm`, `kl` and `iw_published` where the base is not at hand (`--method full`): a model reference,
    loaded as a second, frozen model. With LoRA the base itself serves, adapters switched off."""

    train_on_prompt: bool = False
    """Let the prompt's tokens count too, as P1 published; by default only the completion's do."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What the model thinks of the N target tokens of a batch.

    Attributes:
        log_probs: ln p_t, in nats, with its graph.
        row: which sequence of the batch each token belongs to.
        reference: ln p_ref,t of the same tokens, without a graph.
        divergence: KL(p‖p_ref) of the whole next-token distribution at each of them (of a teacher KL(p_ref‖p)), in
            nats, with its graph.
        entropy: of the K likeliest next tokens there, scaled to one and over ln K, so in 0…1, without a graph.
    """

    log_probs: Float[Tensor, "N"]
    row: Int[Tensor, "N"]
    reference: Float[Tensor, "N"] | None = None
    divergence: Float[Tensor, "N"] | None = None
    entropy: Float[Tensor, "N"] | None = None


Summed = tuple[Float[Tensor, ""], int]


def nll(scored: Scored, objective: Objective) -> Summed:
    """−ln p_t."""
    return -scored.log_probs.sum(), len(scored.log_probs)


def dft(scored: Scored, objective: Objective) -> Summed:
    """−sg[p_t] ln p_t: tokens the model already finds likely weigh more (arXiv 2508.05629)."""
    return -(scored.log_probs.detach().exp() * scored.log_probs).sum(), len(scored.log_probs)


def eaft(scored: Scored, objective: Objective) -> Summed:
    """−sg[H̃^α] ln p_t: where the model is sure, right or wrong, there is little to learn (arXiv 2601.02151).

    Raises:
        MidblockError: when there are no entropies.
    """
    if scored.entropy is None:
        raise MidblockError("the loss `eaft` needs the predictions' entropy")
    return -(scored.entropy**objective.eaft_alpha * scored.log_probs).sum(), len(scored.log_probs)


def stm(scored: Scored, objective: Objective) -> Summed:
    """−ln p_t of the tokens that the base does not find too unlikely, over the number of all (arXiv 2501.14315)."""
    return -(stm_kept(scored, objective) * scored.log_probs).sum(), len(scored.log_probs)


def stm_kept(scored: Scored, objective: Objective) -> Bool[Tensor, "N"]:
    """Tokens whose perplexity under the reference, 1/p_ref, is at most the threshold.

    Raises:
        MidblockError: when there is no reference.
    """
    if scored.reference is None:
        raise MidblockError("the loss `stm` needs a reference model")
    return -scored.reference <= math.log(objective.stm_threshold)


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


def distil(scored: Scored, objective: Objective) -> Summed:
    """KL(p_ref‖p): the whole of what a teacher would say, whatever the data says.

    Raises:
        MidblockError: when there is no teacher's distribution.
    """
    if scored.divergence is None:
        raise MidblockError("the loss `distil` needs the teacher's distribution")
    return scored.divergence.sum(), len(scored.log_probs)


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
    capped = (temperature * mean).clamp(max=math.log(LARGEST_WEIGHT))
    return capped.exp()[scored.row]


@dataclass(frozen=True)
class Loss:
    """A loss and what it wants to be given.

    Attributes:
        function: (scored, objective) → (sum over tokens, how many).
        reference: it needs ln p_ref of the target tokens.
        divergence: it needs the whole distribution of the reference.
        teacher: the reference must be another model, by name, and the divergence is from it, KL(p_ref‖p).
        entropy: it needs the entropy of the likeliest next tokens.
        kept: which target tokens it counts; None where that is all of them.
        options: options that are about it, or about it and others that name them too.
        papers: that the model card names, by their keys there.
    """

    function: Callable[[Scored, Objective], Summed]
    reference: bool = False
    divergence: bool = False
    teacher: bool = False
    entropy: bool = False
    kept: Callable[[Scored, Objective], Bool[Tensor, "N"]] | None = None
    options: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()


LOSSES: Mapping[str, Loss] = {
    "nll": Loss(nll),
    "dft": Loss(dft, papers=("dft",)),
    "eaft": Loss(eaft, entropy=True, options=("eaft_alpha", "eaft_top_k"), papers=("eaft",)),
    "stm": Loss(stm, reference=True, kept=stm_kept, options=("stm_threshold",), papers=("stm",)),
    "iw": Loss(iw, reference=True, options=("iw_temperature",)),
    "kl": Loss(kl, divergence=True, options=("kl_beta",)),
    "iw_published": Loss(iw_published, reference=True, options=("iw_temperature",)),
}

# Against a teacher, which only some verbs have: they choose it, `--loss` does not offer it.
TEACHING: Mapping[str, Loss] = {"distil": Loss(distil, divergence=True, teacher=True)}


def loss_of(objective: Objective) -> Loss:
    """The row of the loss that is minimised."""
    return TEACHING[objective.loss] if objective.loss in TEACHING else LOSSES[objective.loss]
