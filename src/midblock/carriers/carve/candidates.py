"""Candidates: the carrier, also untrained, random carriers of its size in every group, and rivals of as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from midblock.base import MidblockError
from midblock.carriers.carve.contenders import CARRIER, RANDOM, UNTRAINED, Candidate
from midblock.carriers.carve.settings import NecessitySettings
from midblock.carriers.moved import moved
from midblock.carriers.pruned import pruned
from midblock.carriers.random_carriers import random_carriers
from midblock.carriers.rivals import Rival, Scattered
from midblock.carriers.truncated import truncated
from midblock.checkpoints import Anatomy, Carrier, Entries
from midblock.checkpoints.parameters import Weights, parameter_in
from midblock.tuning.carve.channels import ChannelGroups


def candidates_of(
    carrier: Carrier, base: nn.Module, tuned: nn.Module, settings: NecessitySettings
) -> tuple[list[Candidate], list[str]]:
    """The carrier first, then what it is held against, and what a reader must know of them."""
    found = [Candidate(CARRIER, CARRIER, carrier, carrier.count, carrier.nbytes)]
    if (before := untrained(carrier, tuned)) is not None:
        found.append(Candidate(UNTRAINED, UNTRAINED, before, before.count, before.nbytes))
    groups = groups_of(base, tuned)
    draws = random_carriers(carrier, tuned, groups, settings.random_draws, settings.seed)
    for number, drawn in enumerate(draws, start=1):
        found.append(Candidate(f"{RANDOM} {number}", RANDOM, drawn, drawn.count, drawn.nbytes))
    notes = _shared(draws)
    for make in (pruned, truncated) if settings.rivals else ():
        try:
            rival = make(base, tuned, carrier.nbytes)
        except MidblockError as error:  # the carrier is too small for one of its size
            notes.append(f"A rival of the carrier's size is left out: {error}.")
        else:
            found.append(Candidate(rival.name, rival.name, rival, _entries(rival), rival.nbytes))
    return found, notes


def untrained(carrier: Carrier, tuned: Weights) -> Carrier | None:
    """The carrier's places with the tuned model's values, which random carriers and rivals have too.

    None where the carrier holds these itself, as one of masks alone does.
    """
    held = {name: carrier.entries(name) for name in carrier.names}
    values = {name: each.taken(parameter_in(tuned, name).cpu()) for name, each in held.items()}
    if all(torch.equal(values[name].double(), each.values.double()) for name, each in held.items()):
        return None
    own = replace(carrier.config, made={"method": UNTRAINED})
    return Carrier(own, {name: Entries(each.indices, values[name]) for name, each in held.items()}, carrier.masks)


def groups_of(base: nn.Module, tuned: nn.Module) -> ChannelGroups:
    """The masks of all parameters in which two models differ."""
    return ChannelGroups.of(Anatomy.of(base), [each.name for each in moved(base, tuned)])


def _entries(rival: Rival) -> int:
    """Single entries that a rival holds; a change of low rank holds none."""
    return sum(len(each.index) for each in rival.changes.values() if isinstance(each, Scattered))


def _shared(draws: Sequence[Carrier]) -> list[str]:
    """What a reader must know where draws share channels with the carrier, because groups have too few others."""
    most = max((float(each.config.made["shared_with_the_carrier"]) for each in draws), default=0.0)
    return [f"Up to {most:.0%} of a random carrier's channels are the carrier's: groups have too few others."] * (
        most > 0
    )
