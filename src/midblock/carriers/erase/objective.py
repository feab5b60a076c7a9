"""Objective: how far a tuned model with a soft prompt is from the base, prompt by prompt.

J = w · mean_l MSE(block l's output at the last token, in the chosen channels, with the prompt against the base's)
  + β · KL(p_base‖p_with), the mean over the last K positions + γ · mean_i ‖P_i‖².
Source: SFT-Eraser. Ours: each prompt is matched with itself; the published way matches the means over a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from midblock.base import unknown
from midblock.carriers.erase.ends import Ends
from midblock.checkpoints import Anatomy, device_of

PER_PROMPT, BATCH_MEAN = "per-prompt", "batch-mean"
MATCHING = (PER_PROMPT, BATCH_MEAN)


@dataclass(frozen=True)
class Objective:
    """The weights of J.

    Attributes:
        states: w.
        predictions: β.
        size: γ.
        matching: "per-prompt", or "batch-mean" as published.
    """

    states: float = 1.0
    predictions: float = 0.7
    size: float = 0.1
    matching: str = PER_PROMPT

    def __post_init__(self) -> None:
        if self.matching not in MATCHING:
            raise unknown("matching", self.matching, MATCHING)

    def of(self, ours: Ends, base: Ends, head: Anatomy, base_head: Anatomy, prompt: Float[Tensor, "n D"]) -> Parts:
        """J of B prompts, in parts.

        Args:
            ours: of the tuned model with its soft prompt.
            base: of the base without.
            head, base_head: the two models, whose heads are used again.
            prompt: P.
        """
        states = self._states(ours, base)
        divergence = _divergence(ours, base, head, base_head)
        return Parts(states, divergence, prompt.square().sum(1).mean().to(divergence), self)

    def _states(self, ours: Ends, base: Ends) -> Float[Tensor, "B"]:
        if not ours.written:
            return ours.normed.new_zeros(len(ours.normed))
        means = self.matching == BATCH_MEAN
        distances = []
        for block, written in ours.written.items():
            kind = torch.promote_types(written.dtype, torch.float32)
            difference = written.to(kind) - base.written[block].to(written.device, kind)
            if means:
                difference = difference.mean(0, keepdim=True).expand_as(difference)
            distances.append(difference.square().mean(1).to(ours.normed.device))
        return torch.stack(distances).mean(0)


@dataclass(frozen=True, eq=False)
class Parts:
    """J of B prompts, in parts.

    Attributes:
        states: mean over blocks of the mean square, (B,).
        divergence: KL in nats, mean over the last K positions, (B,).
        size: mean ‖P_i‖², one number.
        weights: how they are added.
    """

    states: Tensor
    divergence: Tensor
    size: Tensor
    weights: Objective

    @property
    def total(self) -> Float[Tensor, "B"]:
        """J of each prompt."""
        weights = self.weights
        states = weights.states * self.states.to(self.divergence)
        return states + weights.predictions * self.divergence + weights.size * self.size


def _divergence(ours: Ends, base: Ends, head: Anatomy, base_head: Anatomy) -> Float[Tensor, "B"]:
    V = min(int(each.config.vocab_size) for each in (head, base_head))
    with torch.no_grad():
        p = _log_probabilities(base_head, base.normed, V)
    q = _log_probabilities(head, ours.normed, V)
    return kl_div(q, p.to(q), reduction="none", log_target=True).sum(-1).mean(1)


def _log_probabilities(anatomy: Anatomy, normed: Float[Tensor, "B K D"], V: int) -> Float[Tensor, "B K V"]:
    logits = anatomy.logits(normed.to(device_of(anatomy.head)))[..., :V]
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def project(prompt: Tensor, radius: float) -> None:
    """Bring each vector that is longer than r back to that length, in place."""
    with torch.no_grad():
        prompt.mul_((radius / prompt.norm(dim=1, keepdim=True)).clamp(max=1.0))
