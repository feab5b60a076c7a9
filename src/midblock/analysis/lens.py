"""Logit lens: what each depth would predict, read off with the model's own final norm and head.

Only a few positions of each prompt are read, because the head costs more than a block: with V the vocabulary, one
position at L layers costs L·D·V. Source: nostalgebraist 2020; P1 reports agreement and KL.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from midblock.checkpoints import Anatomy, device_of


def lens_positions(mask: Bool[Tensor, "B T"], count: int) -> Int[Tensor, "B P"]:
    """Up to `count` positions of each prompt, spread evenly over the tokens that count, the last one included.

    A prompt with fewer tokens than `count` repeats some.
    """
    order = mask.long().cumsum(1) * mask  # 1-based rank of each token that counts
    share = torch.arange(1, count + 1, device=mask.device) / count
    rank = (share * mask.sum(1, keepdim=True)).ceil().long().clamp(min=1)
    hits = order[:, None, :] == rank[:, :, None]
    return hits.long().argmax(-1)


def gather_positions(states: Float[Tensor, "B T D"], positions: Int[Tensor, "B P"]) -> Float[Tensor, "B P D"]:
    """The states at the given positions, in their own dtype."""
    positions = positions.to(states.device)
    return states.gather(1, positions.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def read_logits(
    anatomy: Anatomy, states: Float[Tensor, "*batch D"], *, normed: bool, vocabulary: int
) -> Float[Tensor, "*batch V"]:
    """What the model reads off `states`, as the model computes it.

    Args:
        normed: True for the final norm's output, which must not be normed again.
        vocabulary: number of token ids to compare, the first ones.
    """
    weight = next(anatomy.head.parameters())
    with torch.inference_mode():
        states = states.to(device_of(anatomy.head), weight.dtype)
        return anatomy.logits(states if normed else anatomy.final_norm(states))[..., :vocabulary]


def log_probabilities(logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
    """Next-token log-probabilities, float64 (float32 where a device has none).

    A few rows at a time: with V the vocabulary, what fits the processor's cache takes a fifth of the time.
    """
    precise = torch.float32 if logits.device.type == "mps" else torch.float64
    return torch.log_softmax(logits.to(precise), dim=-1)
