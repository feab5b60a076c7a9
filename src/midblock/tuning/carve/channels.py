"""ChannelGroups: which masks decide of each entry of a model's parameters.

A mask is for a channel: what a block reads of the residual stream, a hidden unit, a query's component. An entry of a
weight is carried where the masks of its row and of its column are on, so that what is carried of a parameter is a
submatrix. Groups are those of P3 (LCDD) where a parameter has such channels; whatever else there is has a group of its
own over its outputs, and experts one mask each. Cost: a forward pass of four tokens. Described in docs/carve.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.tuning.carve.grouping import Index, group_block, group_outside
from midblock.tuning.carve.seen import Seen


@dataclass(frozen=True)
class Group:
    """Channels of one kind in a layer.

    Attributes:
        start: where its masks begin in the layer's flat vector.
        size: how many there are.
    """

    name: str
    start: int
    size: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True, eq=False)
class Channels:
    """Which masks decide of a parameter.

    Attributes:
        layer: whose flat mask vector they are in.
        index: for each dimension of the parameter, as it is stored, positions in that vector; None where no mask
            decides along it. One is not None.
    """

    layer: int
    index: tuple[Int[Tensor, "_"] | None, ...]

    def kept(self, on: Bool[Tensor, "masks"]) -> tuple[Int[Tensor, "_"] | None, ...]:
        """Where along each dimension masks are on, ascending; None for all."""
        return tuple(None if each is None else on[each].nonzero()[:, 0] for each in self.index)


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The masks of a model.

    Attributes:
        layers: the groups of each layer, -1 being the embedding and L what stands behind the last block.
        channels: of each parameter that has masks, by its name.
    """

    layers: Mapping[int, tuple[Group, ...]]
    channels: Mapping[str, Channels]

    @classmethod
    def of(cls, anatomy: Anatomy, only: Collection[str] | None = None) -> ChannelGroups:
        """Group the channels of a model.

        Args:
            anatomy: of a model with its weights, which takes four tokens through a forward pass.
            only: parameters by name; all of them by default. Groups that none of them has are left out.

        Raises:
            MidblockError: a parameter that is a single number, or a model that cannot be run where it lies.
        """
        names = anatomy.projections.keys() if only is None else only
        for name in names:
            if not anatomy.projections[name].shape:
                what = f"layer {anatomy.projections[name].layer}: {name} is a single number, which has no channels"
                raise MidblockError(what)
        seen = Seen.of(anatomy)
        found: dict[str, Index] = {}
        for layer in range(-1, len(anatomy) + 1):
            inside = [each for each in anatomy.projections.values() if each.layer == layer]
            blocks = [each for each in inside if each.block is not None]
            found |= group_block(blocks, seen) | group_outside([each for each in inside if each.block is None])
        layers = {name: anatomy.projections[name].layer for name in names}
        return cls._numbered({name: found[name] for name in anatomy.projections if name in layers}, layers)

    @classmethod
    def _numbered(cls, found: Mapping[str, Index], layers: Mapping[str, int]) -> ChannelGroups:
        """Lay the groups of each layer one behind the other, in the order in which parameters name them."""
        sizes: dict[int, dict[str, int]] = {layer: {} for layer in sorted(set(layers.values()))}
        for name, index in found.items():
            for group, size in index.groups.items():
                sizes[layers[name]].setdefault(group, size)
        starts: dict[int, dict[str, Group]] = {}
        for layer, own in sizes.items():
            end, starts[layer] = 0, {}
            for group, size in own.items():
                starts[layer][group] = Group(group, end, size)
                end += size
        channels = {
            name: Channels(layers[name], index.placed({key: each.start for key, each in starts[layers[name]].items()}))
            for name, index in found.items()
        }
        return cls({layer: tuple(own.values()) for layer, own in starts.items()}, channels)

    def size(self, layer: int) -> int:
        """How many masks a layer has."""
        return sum(group.size for group in self.layers[layer])

    @property
    def total(self) -> int:
        """M, how many masks there are."""
        return sum(map(self.size, self.layers))

    def by_group(self, masks: Mapping[int, Bool[Tensor, "_"]]) -> dict[tuple[int, str], Bool[Tensor, "_"]]:
        """Flat mask vectors, by layer, as (layer, group) → masks."""
        return {
            (layer, group.name): masks[layer][group.slice].cpu()
            for layer, groups in self.layers.items()
            for group in groups
        }

    def flat(self, masks: Mapping[tuple[int, str], Bool[Tensor, "_"]]) -> dict[int, Bool[Tensor, "_"]]:
        """What `by_group` made of flat mask vectors, put together again."""
        return {
            layer: torch.cat([masks[layer, group.name] for group in groups]) for layer, groups in self.layers.items()
        }
