"""How far tuning moved what is predicted: KL both ways at the output, on the answers and on general text.

KL(base‖tuned) on the new task predicted forgetting better than distances did in arXiv 2509.04259; not tried here. It is
taken at some positions of each prompt, for the head costs more than a block: with V the vocabulary, D·V a position.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from midblock.analysis.lens import lens_positions, log_probabilities, read_logits
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.evaluation import Targets
from midblock.metrics.predictions import divergence

ROWS = 4  # positions whose V log-probabilities are held at a time


def predicting(batch: Batch, count: int, *, region: str) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Up to `count` positions of each prompt, spread evenly over those that predict a token of a region.

    Returns:
        The positions, and which of them count: a prompt with fewer has repeated ones, one with none has only such.
    """
    where = Targets.of(batch, region).where
    positions = lens_positions(where, count)
    fresh = torch.ones_like(positions, dtype=torch.bool)
    fresh[:, 1:] = positions[:, 1:] != positions[:, :-1]
    return positions, fresh & where.any(1, keepdim=True)


def divergences(
    base: tuple[Anatomy, Float[Tensor, "B P D"]],
    tuned: tuple[Anatomy, Float[Tensor, "B P D"]],
    kept: Bool[Tensor, "B P"],
    vocabulary: int,
) -> Float64[Tensor, "B 3"]:
    """Each prompt's sum of KL(base‖tuned) and of KL(tuned‖base) in nats, and its number of positions.

    Args:
        base, tuned: a model's parts, and its states behind the final norm.
        kept: the positions that count.
        vocabulary: number of token ids to compare, the first ones.
    """
    rows = []
    for place, counted in enumerate(kept):
        logits = [
            read_logits(anatomy, states[place][counted.to(states.device)], normed=True, vocabulary=vocabulary)
            for anatomy, states in (base, tuned)
        ]
        total = torch.zeros(2, dtype=torch.float64)
        for parts in zip(*(each.split(ROWS) for each in logits), strict=True):
            ours, theirs = (log_probabilities(part).cpu().double() for part in parts)
            total += torch.stack([divergence(ours, theirs).sum(), divergence(theirs, ours).sum()])
        rows.append(torch.cat([total, counted.sum()[None].double().cpu()]))
    return torch.stack(rows)
