"""Logit lens: what each depth would predict, read off with the model's own final norm and head.

Only a few positions of each prompt are read, because the head costs more than a block: with V the vocabulary, one
position at L layers costs L·D·V. Source: nostalgebraist 2020; P1 reports agreement and KL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from midblock.base.names import BASE
from midblock.checkpoints import Anatomy, device_of
from midblock.metrics.catalogue import columns
from midblock.metrics.predictions import Predictions


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


def compare_lenses(
    anatomies: Mapping[str, Anatomy],
    states: Mapping[str, Float[Tensor, "B P D"]],
    names: Sequence[str],
    *,
    normed: bool,
    vocabulary: int,
) -> dict[str, Float[Tensor, "B C"]]:
    """Hold what each model reads off one depth against what the base does: for each a row a prompt, a column a metric.

    Args:
        anatomies: by name; a model without one is read with the base's own norm and head, as the rounded base is.
        states: of each model, the base among them.
        names: of metrics of `Predictions`.
        normed, vocabulary: as of `read_logits`.
    """
    base = anatomies[BASE]
    logits = {
        name: read_logits(anatomies.get(name, base), at, normed=normed, vocabulary=vocabulary)
        for name, at in states.items()
    }
    found: dict[str, list[Tensor]] = {name: [] for name in logits if name != BASE}
    for place, of_base in enumerate(logits[BASE].unsqueeze(1)):  # a prompt at a time
        ours = log_probabilities(of_base)
        for name, rows in found.items():
            theirs = log_probabilities(logits[name][place : place + 1]).to(ours.device)
            rows.append(columns(names, Predictions(ours, theirs)))
    return {name: torch.cat(rows) for name, rows in found.items()}


def log_probabilities(logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
    """Next-token log-probabilities, float64 (float32 where a device has none).

    A few rows at a time: with V the vocabulary, what fits the processor's cache takes a fifth of the time.
    """
    precise = torch.float32 if logits.device.type == "mps" else torch.float64
    return torch.log_softmax(logits.to(precise), dim=-1)
