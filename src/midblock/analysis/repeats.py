"""Prompts that come more than once: which of them the model read the same tokens of.

The same tokens have the same states, up to the rounding of batches that were padded otherwise; metrics of distances and
of small singular values would take that rounding for geometry. Repeats are no further evidence either: they are
resampled together, as variants of one question are (`Clusters`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from midblock.analysis.layers_in_words import layers_in_words
from midblock.base.clusters import Clusters
from midblock.data import TokenizedPrompt
from midblock.metrics.geometry import States
from midblock.trace import RowStatistic


def repeats_of(prompts: Sequence[TokenizedPrompt], region: str) -> dict[int, int]:
    """For each prompt whose states in the region are those of an earlier one: that one, by index.

    The states of a prompt's own tokens do not know the answer behind them.
    """
    first: dict[tuple[int, ...], int] = {}
    found = {}
    for prompt in sorted(prompts, key=lambda prompt: prompt.index):
        ids = prompt.input_ids[: prompt.answer_start] if region == "prompt" else prompt.input_ids
        earlier = first.setdefault(
            (*((prompt.answer_start, prompt.answer_end) if region == "answer" else ()), -1, *ids), prompt.index
        )
        if earlier != prompt.index:
            found[prompt.index] = earlier
    return found


def alike_by_tokens(index: Iterable[int], repeats: Mapping[int, int]) -> Clusters | None:
    """Which of some prompts, given by index, repeat one another; None where none do."""
    return Clusters.of([str(repeats.get(each, each)) for each in index]) if repeats else None


def with_one_state(rows: RowStatistic, repeats: Mapping[int, int]) -> RowStatistic:
    """Rows in which a prompt that repeats an earlier one has the very state of that one."""
    if not repeats:
        return rows
    places = {int(index): place for place, index in enumerate(rows.index.tolist())}
    origins: dict[int, int] = {}  # the earliest one may not be among these rows
    for index, place in places.items():
        origins.setdefault(repeats.get(index, index), place)
    order = [origins[repeats.get(index, index)] for index in places]
    return RowStatistic(rows.index, rows.values[torch.tensor(order)])


def fewer_states(states: States, repeats: int) -> int | None:
    """How many different states there are, if fewer than different prompts."""
    different = len(states.X) - repeats
    if len(states.norms.unique()) < different and (count := len(states.first.unique())) < different:
        return count
    return None


@dataclass(frozen=True)
class Alike:
    """Where prompts of different tokens have the same state: answers of one token at the embedding, say.

    Attributes:
        layers: by model, number of prompts and of different states.
    """

    layers: dict[tuple[str, int, int], list[int]] = field(default_factory=dict)

    def add(self, model: str, layer: int, N: int, count: int) -> None:
        """Remember a layer at which N prompts have fewer different states."""
        self.layers.setdefault((model, N, count), []).append(layer)

    def notes(self) -> list[str]:
        """One for each model."""
        return [
            f"The {N} prompts have {count} different states at {layers_in_words(layers)} of {model}: "
            "intrinsic_dimension takes each once."
            for (model, N, count), layers in sorted(self.layers.items())
        ]
