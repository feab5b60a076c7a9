"""Projection: one parameter of a decoder, where it sits, what it does there, and how it is stored.

The noun that metrics, tuning and merging share. `places.py` reads it off a model, `layouts.py` knows how fused ones are
laid out. The names of roles and parts are those of the tables: docs/run_folder.md, "LayerTable".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

Region = tuple[int | tuple[int, int], ...]
"""A box in a tensor: an index or (first, past the last) for each dimension; empty for all of it."""


@dataclass(frozen=True)
class Cut:
    """How a fused weight is cut into roles along its outputs: `groups` times `sizes` rows, one size for each role."""

    roles: tuple[str, ...]
    sizes: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    def parts(self, tensor: Tensor) -> dict[str, Tensor]:
        """Role → its rows, as (out, in); views where the rows lie together."""
        rows = tensor.T if self.transposed else tensor
        if self.groups == 1:
            return dict(zip(self.roles, rows.split(list(self.sizes), dim=-2), strict=True))
        grouped = rows.unflatten(0, (self.groups, sum(self.sizes))).split(list(self.sizes), dim=1)
        return {role: part.flatten(0, 1) for role, part in zip(self.roles, grouped, strict=True)}

    def role_of(self, rows: tuple[int, int]) -> str | None:
        """The role that all rows from the first to the last (excluded) belong to; None where there are several."""
        start = 0
        for role, size in zip(self.roles, self.sizes, strict=True):
            if self.groups == 1 and start <= rows[0] and rows[1] <= start + size:
                return role
            start += size
        return None


@dataclass(frozen=True)
class Projection:
    """A parameter of a model.

    Attributes:
        name: in `named_parameters()` of the model that transformers builds.
        layer: -1 for embeddings, 0…L-1 for a block's, L for the final norm, the head, and whatever belongs to another
            modality (its role is then the tower's name).
        role: one of `roles.ROLES`, "norm", "bias", "embedding", "head", or the parameter's own path in the block
            when its role is not known, so that nothing is dropped.
        part: of the model: `attention`, `mlp`, `router`, `norm`, `bias`, `embedding`, `position_embedding`, `head`, or
            `other`.
        shape: (out, in), for experts (experts, out, in), however it is stored; of a vector its length.
        block: `layer` where that is a block, else None.
        transposed: stored as (in, out): GPT-2's Conv1D, and experts that say so.
        stacked: one matrix for each of several experts.
        beside: of a bias, the role of the projection it is added to; for selection it answers to that too.
        beside_part: the part of that projection.
        heads: of an attention projection, how many heads it has and how wide each is, where that is certain.
        cut: how a fused weight is cut into roles; None where it is not fused or its layout is not certain.
    """

    name: str
    layer: int
    role: str
    part: str
    shape: tuple[int, ...]
    block: int | None = None
    transposed: bool = False
    stacked: bool = False
    beside: str | None = None
    beside_part: str | None = None
    heads: tuple[int, int] | None = None
    cut: Cut | None = field(default=None, repr=False)

    @property
    def per_rank(self) -> int:
        """Parameters of two factors together for each unit of rank: m + n, for every expert."""
        return math.prod(self.shape[:-2]) * sum(self.shape[-2:])

    @property
    def answers(self) -> tuple[str, ...]:
        """The roles it is selected by, its own first."""
        return (self.role,) if self.beside is None else (self.role, self.beside)

    def parts(self, tensor: Tensor, region: Region = ()) -> dict[str, Tensor]:
        """Take the tensor apart into the roles it holds.

        Args:
            tensor: the parameter as it is stored, or a piece of it.
            region: where in the parameter the piece lies.

        Returns:
            Role → view; the tensor under its own role when the layout is not known.
        """
        if self.cut is None:
            return {self.role: tensor}
        rows = region[-2] if region else None
        if rows is None or rows == (0, self.shape[-2]):
            return self.cut.parts(tensor)
        found = self.cut.role_of(rows) if isinstance(rows, tuple) and not self.transposed else None
        return {found or self.role: tensor}
