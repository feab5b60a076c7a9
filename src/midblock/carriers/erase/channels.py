"""Channels: which channels of each block's output are matched with the base's.

Those that a carrier writes to; as many others, as a control; all of them, for a model whose change nothing carries; or
none, so that predictions alone are matched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from midblock.base import MidblockError, generator

WRITTEN = ("ffn_write", "attn_write")  # groups of a carrier's masks over what a block adds to the residual stream
Channels = Mapping[int, Tensor]
Masks = Mapping[tuple[int, str], Bool[Tensor, "C"]]


def written_channels(carriers: Iterable[Masks], blocks: int, width: int) -> Channels:
    """By block, the channels of the residual stream that carriers write to, ascending; blocks without one are left out.

    Args:
        carriers: the masks of each.
        blocks: L.
        width: D.

    Raises:
        MidblockError: they write to none, or are of another width.
    """
    known, found = list(carriers), {}
    for block in range(blocks):
        written = torch.zeros(width, dtype=torch.bool)
        for mask in (masks[block, group] for masks in known for group in WRITTEN if (block, group) in masks):
            if len(mask) != width:
                raise MidblockError(f"the carrier's masks have {len(mask)} channels, the model {width}")
            written |= mask.bool().cpu()
        if bool(written.any()):
            found[block] = written.nonzero()[:, 0]
    if not found:
        what = "the carrier writes to no channel of the residual stream"
        raise MidblockError(what, hint="--channels all matches every channel, --channels none predictions alone")
    return found


def other_channels(channels: Channels, width: int, seed: int) -> Channels:
    """As many channels of the same blocks, drawn from the others; all of them and more where those are few."""
    found = {}
    for block, own in channels.items():
        draw = generator(seed, "erase", "channels", block)
        taken = torch.zeros(width, dtype=torch.bool)
        taken[own] = True
        others, again = (torch.from_numpy(draw.permutation(each.nonzero()[:, 0].numpy())) for each in (~taken, taken))
        found[block] = torch.cat([others, again])[: len(own)].sort().values
    return found


def all_channels(blocks: int, width: int) -> Channels:
    """Every channel of every block."""
    return {block: torch.arange(width) for block in range(blocks)}


def overlap(first: Channels, second: Channels) -> float:
    """Share of the first's channels that are among the second's."""
    total = sum(len(each) for each in first.values())
    both = sum(int(torch.isin(each, second[block]).sum()) for block, each in first.items() if block in second)
    return both / total if total else 0.0
