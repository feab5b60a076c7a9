"""Piece: a box of a tensor on disk that is a box of a parameter; and tensors put together of boxes.

Files and models cut the same weights differently: an expert lies in the file by itself where the model has a stack of
them. A piece says which box here is which box there, so that either side is read without making the other. Cost: views;
putting together copies each box once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.checkpoints.projections import Region
from midblock.checkpoints.turns import Turn


@dataclass(frozen=True)
class Piece:
    """A tensor on disk, or a box of it, and the box of a parameter that it is.

    Attributes:
        name: of the parameter in memory; of what no model has, the name on disk.
        stored: the tensor's name on disk.
        region: where in the parameter it lies; empty for all of it.
        inside: where in the tensor on disk, after `turn`; empty for all of it.
        opaque: the conversion that lies between, where it is more than placing boxes: `name` is then that on disk.
        turn: what puts the tensor on disk in the order of memory before boxes are taken; `inside` is then given.
        unread: the model has neither parameter nor buffer of this name, so transformers does not load it.
    """

    name: str
    stored: str
    region: Region = ()
    inside: Region = ()
    opaque: str | None = None
    turn: Turn | None = None
    unread: bool = False


def grouped(pieces: Sequence[Piece], by: str) -> dict[str, tuple[Piece, ...]]:
    """Pieces by one of their names, in order."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(getattr(piece, by), []).append(piece)
    return {name: tuple(several) for name, several in found.items()}


def box(tensor: Tensor, region: Region) -> Tensor:
    """The view of a tensor that a region means."""
    return tensor[tuple(side if isinstance(side, int) else slice(*side) for side in region)] if region else tensor


def sides(region: Region) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(side[1] - side[0] for side in region if isinstance(side, tuple))


def extent(regions: Sequence[Region]) -> tuple[int, ...]:
    """The shape that boxes fill together."""
    stops = ([side + 1 if isinstance(side, int) else side[1] for side in region] for region in regions)
    return tuple(map(max, zip(*stops, strict=True)))


def put_together(
    shape: Sequence[int], boxes: Sequence[tuple[Region, Shaped[Tensor, "..."]]]
) -> Shaped[Tensor, "*shape"]:
    """Copy boxes into one tensor, of their widest type: float64 where one of them was computed."""
    device = "meta" if any(value.is_meta for _, value in boxes) else "cpu"
    made = torch.empty(shape, dtype=reduce(torch.promote_types, (value.dtype for _, value in boxes)), device=device)
    for region, value in boxes:
        box(made, region).copy_(value)
    return made
