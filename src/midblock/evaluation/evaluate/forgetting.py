"""Forgetting: what a model gained on the tasks that tuning was about, against what it lost elsewhere.

Gain and loss are means over tasks of the difference from the reference; their intervals add up the tasks' own, which
rest on different items (MOVER, Zou and Donner 2008). Beside them stand KL both ways between the reference's next-token
distributions and the model's, on general texts and on the tasks' prompts, and the drift of the weights,
‖W − W_ref‖/‖W_ref‖. Only tasks scored from 0 to 1, where more is better, are averaged: nats are no share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from midblock.base import Estimate
from midblock.checkpoints.offloaded import held_value, parameters_once
from midblock.data import Batch, TokenizedPrompt, make_batches
from midblock.evaluation.divergence import mean_divergence
from midblock.evaluation.evaluate.tables import Compared
from midblock.evaluation.task import Task
from midblock.evaluation.token_mean import TokenMean

KLS: Mapping[str, tuple[str, bool]] = {
    "kl_general": ("general", False),
    "kl_general_reverse": ("general", True),
    "kl_tasks": ("tasks", False),
    "kl_tasks_reverse": ("tasks", True),
}
QUANTITIES = ("gain", "loss", *KLS)
FORGETTING = ("model", *(f"{name}{end}" for name in QUANTITIES for end in ("", "_low", "_high")), "drift")


def mean_of(gains: Sequence[Estimate], sign: int = 1) -> Estimate | None:
    """The mean of independent differences, times `sign`, with its interval; None where there are none."""
    if not gains:
        return None
    k = len(gains)
    value = sum(each.value for each in gains) / k
    down = math.sqrt(sum((each.value - each.low) ** 2 for each in gains)) / k
    up = math.sqrt(sum((each.high - each.value) ** 2 for each in gains)) / k
    n = sum(each.n for each in gains)
    return (
        Estimate(value, value - down, value + up, n)
        if sign > 0
        else Estimate(0.0 - value, 0.0 - value - up, down - value, n)
    )


def averaged(task: Task) -> bool:
    """Whether a task's score is a share of what could be had."""
    return task.higher_is_better


def forgetting_row(
    model: str, compared: Sequence[Compared], targets: Sequence[str], kls: Mapping[str, Estimate], drift: float | None
) -> dict[str, Any]:
    """One model's row, with the columns of FORGETTING.

    Args:
        compared: this model as the second, the reference as the first.
        targets: tasks that tuning was about; where none are named there is neither gain nor loss.
        kls: by the names of KLS.
    """
    shares = [each for each in compared if averaged(each.task)]
    gain = mean_of([each.gain for each in shares if each.task.name in targets])
    loss = mean_of([each.gain for each in shares if each.task.name not in targets], -1) if targets else None
    found = {"gain": gain, "loss": loss, **kls}
    row: dict[str, Any] = {"model": model}
    for name in QUANTITIES:
        each = found.get(name) or Estimate(math.nan, math.nan, math.nan, 0)
        row |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
    return row | {"drift": math.nan if drift is None else drift}


def batches_of(ids: Sequence[Sequence[int]], max_length: int, batch_tokens: int) -> list[Batch]:
    """Prompts' ids as batches for reading."""
    prompts = [
        TokenizedPrompt(place, tuple(each[:max_length]), len(each[:max_length])) for place, each in enumerate(ids)
    ]
    return make_batches(prompts, batch_tokens=batch_tokens)


def divergence(
    reference: nn.Module, model: nn.Module, batches: Sequence[Batch], *, back: bool, seed: int
) -> dict[str, Any]:
    """KL(reference‖model), or `back` KL(model‖reference), as plain values that give the same mean again."""
    first, second = (model, reference) if back else (reference, model)
    found = mean_divergence(second, first, batches, seed=seed)
    return {"index": found.index.tolist(), "sums": found.sums.tolist(), "counts": found.counts.tolist()}


def estimate_of(kept: Mapping[str, Any], seed: int) -> Estimate:
    """The mean of what `divergence` gave."""
    index, counts = (torch.tensor(kept[name], dtype=torch.long) for name in ("index", "counts"))
    return TokenMean.of(index, torch.tensor(kept["sums"], dtype=torch.float64), counts, seed).interval


def weight_drift(reference: nn.Module, model: nn.Module) -> float | None:
    """‖W − W_ref‖/‖W_ref‖ over all weights; None of models whose weights differ in shape."""
    ours, theirs = parameters_once(model), parameters_once(reference)
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return None
    squares: Callable[[torch.Tensor], float] = lambda value: float(value.double().square().sum())  # noqa: E731
    moved = whole = 0.0
    for name in ours:
        before, after = held_value(reference, name), held_value(model, name)
        moved += squares(after - before.to(after.device))
        whole += squares(before)
    return math.sqrt(moved / whole) if whole else None
