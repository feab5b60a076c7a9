"""Random carriers: as many channels on in every group as a carrier has, drawn elsewhere; so of the same bytes.

A draw takes channels that the carrier leaves off before those it keeps, and those that no earlier draw has before
those that one has: draws are disjoint from the carrier, and from each other, as far as the group is large enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from midblock.base import derive
from midblock.checkpoints import Carrier, CarrierConfig, Entries
from midblock.checkpoints.parameters import Weights, parameter_in

GroupMasks = Mapping[tuple[int, str], Bool[Tensor, " n"]]


@runtime_checkable
class Channels(Protocol):
    """Which masks decide of a parameter (tuning's `Channels`)."""

    @property
    def layer(self) -> int: ...

    def kept(self, on: Any) -> tuple[Tensor | None, ...]: ...


@runtime_checkable
class Groups(Protocol):
    """The masks of a model (tuning's `ChannelGroups`)."""

    @property
    def channels(self) -> Mapping[str, Channels]: ...

    def flat(self, masks: Any) -> dict[int, Any]: ...


@dataclass(frozen=True)
class RandomMasks:
    """One draw.

    Attributes:
        masks: by layer and group, as many on in each as in the carrier.
        of_the_carrier: the share of its channels that the carrier has on too: 0 where groups are large enough.
        of_the_others: the share that an earlier draw has on too.
    """

    masks: dict[tuple[int, str], Bool[Tensor, " n"]]
    of_the_carrier: float
    of_the_others: float


def random_masks(masks: GroupMasks, draws: int, seed: int) -> list[RandomMasks]:
    """Draw masks of a carrier's sizes.

    Args:
        masks: the carrier's.
        draws: how many.

    Example:
        >>> (drawn,) = random_masks({(0, "q"): torch.tensor([True, False, False])}, draws=1, seed=0)
        >>> int(drawn.masks[0, "q"].sum()), bool(drawn.masks[0, "q"][0])
        (1, False)
    """
    used = {key: torch.zeros(len(mask), dtype=torch.int64) for key, mask in masks.items()}
    found = []
    for draw in range(draws):
        made, of_carrier, of_others, count = dict[tuple[int, str], Tensor](), 0, 0, 0
        for key, mask in masks.items():
            on = _drawn(mask, used[key], derive(seed, "random carrier", draw, *key))
            count += int(on.sum())
            of_carrier += int((on & mask).sum())
            of_others += int((on & (used[key] > 0)).sum())
            used[key] += on
            made[key] = on
        found.append(RandomMasks(made, of_carrier / max(count, 1), of_others / max(count, 1)))
    return found


def random_carriers(carrier: Carrier, tuned: Weights, groups: Groups, draws: int, seed: int) -> list[Carrier]:
    """Carriers in memory of the same size as one, a group at a time, with a tuned model's values.

    Args:
        tuned: the model that values are taken from.
        groups: `ChannelGroups` of the base, over the parameters that the carrier was carved from.
        draws: how many.

    Returns:
        One for each draw, of as many entries as the carrier; `config.made` tells how far it is disjoint.
    """
    return [_carrier(carrier, tuned, groups, drawn, draw) for draw, drawn in _numbered(carrier, draws, seed)]


def _numbered(carrier: Carrier, draws: int, seed: int) -> Sequence[tuple[int, RandomMasks]]:
    return list(enumerate(random_masks(carrier.masks, draws, seed)))


def _carrier(carrier: Carrier, tuned: Weights, groups: Groups, drawn: RandomMasks, draw: int) -> Carrier:
    flat, held, shapes = groups.flat(drawn.masks), dict[str, Entries](), dict[str, tuple[int, ...]]()
    for name, channels in groups.channels.items():
        value = parameter_in(tuned, name)
        entries = Entries.of(value, channels.kept(flat[channels.layer]))
        if entries.count:
            held[name], shapes[name] = entries, tuple(value.shape)
    made = {
        "method": "random",
        "draw": draw,
        "shared_with_the_carrier": drawn.of_the_carrier,
        "shared_with_earlier_draws": drawn.of_the_others,
    }
    own = carrier.config
    config = CarrierConfig(own.base, own.base_hash, own.architecture, own.tuned, own.tuned_hash, shapes, made)
    return Carrier(config, held, drawn.masks)


def _drawn(mask: Bool[Tensor, " n"], used: Tensor, seed: int) -> Bool[Tensor, " n"]:
    """As many as `mask` has on: first those it leaves off, first those that were used least, else by chance."""
    chance = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
    order = chance[torch.argsort(mask[chance].long() * (int(used.sum()) + 1) + used[chance], stable=True)]
    on = torch.zeros_like(mask)
    on[order[: int(mask.sum())]] = True
    return on
