"""Candidates: the carrier, random carriers of its size in every group, and rivals of as many bytes.

A random carrier keeps as many channels of every group as the carrier does, so it has as many entries in every weight;
the tuned model's values stand in them. Channels that neither the carrier nor an earlier draw keeps are drawn first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from midblock.base import generator
from midblock.carriers.carve.contenders import CARRIER, RANDOM, Candidate
from midblock.carriers.carve.settings import NecessitySettings
from midblock.checkpoints import Anatomy, Carrier
from midblock.checkpoints.entries import Entries
from midblock.tuning.carve.channels import ChannelGroups

Masks = Mapping[tuple[int, str], Bool[Tensor, "n"]]


def candidates_of(
    carrier: Carrier, base: nn.Module, tuned: nn.Module, settings: NecessitySettings
) -> tuple[list[Candidate], list[str]]:
    """The carrier first, then what it is held against, and what a reader must know of them."""
    found = [Candidate(CARRIER, CARRIER, carrier, carrier.count, carrier.nbytes)]
    notes: list[str] = []
    draws = draw_masks(carrier.masks, settings.random_draws, settings.seed)
    if draws:
        groups = ChannelGroups.of(Anatomy.of(base), changed_names(base, tuned))
        for number, masks in enumerate(draws, start=1):
            drawn = kept_of(carrier, groups, masks, tuned)
            found.append(Candidate(f"{RANDOM} {number}", RANDOM, drawn, drawn.count, drawn.nbytes))
        notes += _overlap(carrier.masks, draws)
    return found, notes


def draw_masks(masks: Masks, count: int, seed: int) -> list[dict[tuple[int, str], Bool[Tensor, "n"]]]:
    """Random masks, in every group as many on as in `masks`.

    Returns:
        So many draws; within a group one has channels of the carrier's, or of an earlier draw, only where too few
        others are left.
    """
    used = {key: np.zeros(len(on), dtype=np.int64) for key, on in masks.items()}
    found = []
    for number in range(count):
        draw = {}
        for key, on in masks.items():
            carried = on.numpy().astype(bool)
            chance = generator(seed, "random carrier", number, *map(str, key)).random(len(carried))
            # the carrier's own last, then those that earlier draws have, the rest by chance
            order = np.lexsort((chance, used[key], carried))
            chosen = np.zeros(len(carried), dtype=bool)
            chosen[order[: int(carried.sum())]] = True
            used[key] += chosen
            draw[key] = torch.from_numpy(chosen)
        found.append(draw)
    return found


def kept_of(carrier: Carrier, groups: ChannelGroups, masks: Masks, tuned: nn.Module) -> Carrier:
    """The tuned model's values in the rows and columns that masks keep, as a carrier in memory."""
    flat, parameters = groups.flat(masks), dict(tuned.named_parameters())
    held = {
        name: Entries.of(parameters[name].detach().cpu(), channels.kept(flat[channels.layer]))
        for name, channels in groups.channels.items()
    }
    held = {name: entries for name, entries in held.items() if entries.count}
    shapes = {name: tuple(parameters[name].shape) for name in held}
    return Carrier(replace(carrier.config, shapes=shapes, made={"method": RANDOM}), held, dict(masks))


def changed_names(base: nn.Module, tuned: nn.Module) -> list[str]:
    """The parameters in which two models differ."""
    before = dict(base.named_parameters())
    return [name for name, value in tuned.named_parameters() if not torch.equal(value, before[name])]


def _overlap(masks: Masks, draws: list[dict[tuple[int, str], Bool[Tensor, "n"]]]) -> list[str]:
    """What a reader must know where draws share channels with the carrier."""
    kept = sum(int(on.sum()) for on in masks.values())
    shared = max(sum(int((draw[key] & on).sum()) for key, on in masks.items()) for draw in draws)
    if not shared:
        return []
    share = f"{shared / kept:.0%}"
    return [f"Random carriers share up to {share} of the carrier's channels: some groups have too few others left."]
