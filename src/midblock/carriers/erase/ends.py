"""Ends: what a model does at the end of prompts: what its blocks write at the last token, and what its head is given.

Prompts are padded on the right, where causal attention never looks back from: each gets the states that it has alone,
in any architecture, without a mask. Only the last K positions reach the head. Cost: a forward pass; N × (channels +
K × D) numbers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midblock.base import MidblockError
from midblock.carriers.erase.channels import Channels
from midblock.checkpoints import Anatomy, PromptedEmbedding
from midblock.trace import through_backbone, watch

Rows = Sequence[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Ends:
    """The ends of B prompts.

    Attributes:
        written: by block, its output at the last token, in the chosen channels.
        normed: what the head is given at the last K positions.
    """

    written: dict[int, Float[Tensor, "B C"]]
    normed: Float[Tensor, "B K D"]

    def take(self, places: Int[Tensor, "b"]) -> Ends:
        """Those of some of the prompts."""
        return Ends({block: each[places] for block, each in self.written.items()}, self.normed[places])

    @classmethod
    def join(cls, parts: Sequence[Ends]) -> Ends:
        """One behind the other."""
        written = {block: torch.cat([each.written[block] for each in parts]) for block in parts[0].written}
        return cls(written, torch.cat([each.normed for each in parts]))


def padded(rows: Rows, embedding: Any) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B"]]:
    """Ids padded on the right, a soft prompt's among them where the model has one, and their numbers."""
    known = [embedding.insert(row) if isinstance(embedding, PromptedEmbedding) else row for row in rows]
    lengths = torch.tensor([len(row) for row in known])
    width = int(lengths.max())
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in known]), lengths


def read_ends(
    anatomy: Anatomy, input_ids: Int[Tensor, "B T"], lengths: Int[Tensor, "B"], channels: Channels, last: int
) -> Ends:
    """Run a model over prompts.

    Args:
        input_ids, lengths: as of `padded`.
        last: K.
    """
    written: dict[int, Tensor] = {}
    rows, ends = torch.arange(len(lengths)), lengths - 1

    def on_layer(block: int, states: Tensor) -> None:
        at_end = states[rows.to(states.device), ends.to(states.device)]
        written[block] = at_end[:, channels[block].to(states.device)]

    with watch(anatomy, list(channels), on_layer):
        states = through_backbone(anatomy, input_ids)
    behind = (ends[:, None] - torch.arange(last - 1, -1, -1)).to(states.device)
    return Ends(written, states[rows[:, None].to(states.device), behind])


@torch.no_grad()
def ends_of(
    anatomy: Anatomy, rows: Rows, channels: Channels, last: int, batch: int, advance: Callable[[float], None]
) -> Ends:
    """The ends of all prompts, some at a time.

    Raises:
        MidblockError: K is more than a prompt has tokens, or a state is not finite.
    """
    check_last(rows, last)
    parts = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        parts.append(read_ends(anatomy, *padded(part, anatomy.embedding), channels, last))
        advance(len(part))
    found = Ends.join(parts)
    if not all(bool(torch.isfinite(each).all()) for each in (*found.written.values(), found.normed)):
        raise MidblockError("the base's states are not finite at the end of a prompt", hint="try --dtype float32")
    return found


def check_last(rows: Rows, last: int) -> None:
    """Raise MidblockError for a prompt that has fewer than K tokens."""
    shortest = min(range(len(rows)), key=lambda place: len(rows[place]))
    if len(rows[shortest]) < last:
        what = f"prompt {shortest} has {len(rows[shortest])} tokens; predictions at the last {last} are compared"
        raise MidblockError(what, hint=f"--last-tokens {len(rows[shortest])}")
