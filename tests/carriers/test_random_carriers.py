"""Random carriers: a carrier's sizes group by group, elsewhere as far as there is room."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from midblock.carriers.random_carriers import random_carriers, random_masks
from midblock.checkpoints import Carrier, CarrierConfig, Entries


def mask(*on: int, size: int) -> torch.Tensor:
    made = torch.zeros(size, dtype=torch.bool)
    made[list(on)] = True
    return made


def test_draws_have_the_sizes_and_are_disjoint_where_there_is_room():
    masks = {(0, "q"): mask(1, 4, size=12), (0, "v"): mask(0, 1, 2, size=4), (1, "q"): mask(size=3)}
    draws = random_masks(masks, draws=5, seed=3)
    for drawn in draws:
        assert {key: int(each.sum()) for key, each in drawn.masks.items()} == {(0, "q"): 2, (0, "v"): 3, (1, "q"): 0}
        assert not bool((drawn.masks[0, "q"] & masks[0, "q"]).any())
        assert bool(drawn.masks[0, "v"][3])  # the one channel that the carrier leaves off
        assert drawn.of_the_carrier == 2 / 5
    assert int(torch.stack([drawn.masks[0, "q"] for drawn in draws]).sum(0).max()) == 1
    assert draws[0].of_the_others == 0
    again = random_masks(masks, draws=5, seed=3)
    assert all(torch.equal(one.masks[0, "q"], two.masks[0, "q"]) for one, two in zip(draws, again, strict=True))
    other = random_masks(masks, draws=5, seed=4)
    assert any(not torch.equal(one.masks[0, "q"], two.masks[0, "q"]) for one, two in zip(draws, other, strict=True))


def test_every_channel_is_drawn_equally_often():
    masks = {(0, "q"): mask(0, size=5)}
    counts = sum(random_masks(masks, draws=1, seed=seed)[0].masks[0, "q"].long() for seed in range(400))
    assert int(counts[0]) == 0
    assert all(70 <= int(count) <= 130 for count in counts[1:])


@dataclass(frozen=True)
class Rows:
    """A layer's masks decide of a weight's rows and columns."""

    layer: int
    index: tuple[torch.Tensor | None, ...]

    def kept(self, on: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return tuple(None if each is None else on[each].nonzero()[:, 0] for each in self.index)


@dataclass(frozen=True)
class TwoGroups:
    channels: Mapping[str, Rows]

    def flat(self, masks: Mapping[tuple[int, str], torch.Tensor]) -> dict[int, torch.Tensor]:
        return {0: torch.cat([masks[0, "out"], masks[0, "in"]])}


def test_carriers_have_as_many_entries_with_the_tuned_values():
    stream = torch.Generator().manual_seed(0)
    tuned = {"w": torch.randn(8, 6, generator=stream), "b": torch.randn(8, generator=stream)}
    groups = TwoGroups({"w": Rows(0, (torch.arange(8), torch.arange(8, 14))), "b": Rows(0, (torch.arange(8),))})
    masks = {(0, "out"): mask(0, 5, size=8), (0, "in"): mask(1, 2, size=6)}
    flat = groups.flat(masks)[0]
    held = {name: Entries.of(tuned[name], each.kept(flat)) for name, each in groups.channels.items()}
    config = CarrierConfig("base", "0" * 64, "llama", "tuned", "1" * 64, {"w": (8, 6), "b": (8,)})
    carrier = Carrier(config, held, masks)
    for made in random_carriers(carrier, tuned, groups, draws=3, seed=0):
        assert (made.count, made.nbytes) == (carrier.count, carrier.nbytes)
        assert made.config.made["shared_with_the_carrier"] == 0
        for name, value in tuned.items():
            entries, marked = made.entries(name), torch.zeros_like(value)
            assert torch.equal(entries.values, entries.taken(value))
            entries.put(marked, torch.ones_like(entries.values))
            assert not bool(marked[held[name].place(torch.zeros_like(value)) != 0].any())
