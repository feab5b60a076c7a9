"""What becomes of each tensor of a merge: whose bytes are copied, what is computed, and in which file it goes.

The merge has the base's names on disk; a parameter that lies there in pieces (experts) is merged piece by piece. Cost:
nothing is read but tensors that cannot be computed with, which must be equal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from midblock.base import MidblockError
from midblock.checkpoints import (
    BUFFERS,
    EffectiveTensors,
    Projection,
    Source,
    projection_on_disk,
    value_on_disk,
    value_on_disk_like,
)
from midblock.checkpoints.readable import computable
from midblock.interventions.merge.alphas import Alphas
from midblock.interventions.merge.parents import added, shared, shared_head

Kind = Literal["base", "tuned", "blend", "added"]


@dataclass(frozen=True)
class Item:
    """One tensor to write.

    Attributes:
        name: on disk, in the base and in the merge.
        projection: what it is.
        paired: whether both models have it; a buffer, a tower or what no model loads may be one parent's alone.
        alpha: α.
        kind: whose bytes are copied, or "blend" for what is computed; "added" is the tuned model's alone.
        dtype, shape: as it is written.
    """

    name: str
    projection: Projection
    paired: bool
    alpha: float
    kind: Kind
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return torch.Size(self.shape).numel()


def plan_files(
    base: EffectiveTensors, tuned: EffectiveTensors, alphas: Alphas, dtype: torch.dtype | None
) -> list[list[Item]]:
    """Decide for every tensor of the base what becomes of it.

    Args:
        dtype: of every floating-point tensor written; None for the base's own.

    Returns:
        The tensors that go into the counterpart of each file of the base; a head that the base's files lack comes last,
        and what the tuned model's files have beside their model.

    Raises:
        MidblockError: tensors that one parent lacks or has in another shape, and quantised ones that differ.
    """
    base, tuned = base.outlined, tuned.outlined
    head = shared_head(base, tuned)
    both = shared(base, tuned) | ({head} if head is not None else set())
    homes: dict[Path | None, list[Item]] = {}
    for name in base.on_disk:
        item = _item(name, name in both, base, tuned, alphas, dtype)
        homes.setdefault(base.store.file(name), []).append(item)
    files = list(homes.values())
    if head is not None and head not in base.on_disk:
        files[-1].append(_item(head, True, base, tuned, alphas, dtype))
    files[-1] += [_added(name, tuned) for name in added(base, tuned)]
    return files


def _added(name: str, tuned: EffectiveTensors) -> Item:
    where, store = projection_on_disk(tuned, name), tuned.store
    return Item(name, where, False, 1.0, "added", store.dtype(name), store.shape(name))


def _item(
    name: str,
    paired: bool,
    base: EffectiveTensors,
    tuned: EffectiveTensors,
    alphas: Alphas,
    dtype: torch.dtype | None,
) -> Item:
    where, ours = projection_on_disk(base, name), value_on_disk(base, name)
    own, shape = _own_dtype(name, base, ours), tuple(ours.stored.shape)
    written = dtype if dtype is not None and own.is_floating_point and own.itemsize > 1 else own
    if not paired or name.endswith(BUFFERS):
        return Item(name, where, False, 0.0, "base", own, shape)
    theirs = value_on_disk_like(tuned, base, name)
    alpha = alphas.embedding if where.role == "head" and base.tied and tuned.tied else alphas.of(where)
    if not computable(own) or not computable(theirs.stored.dtype):
        _check_equal(name, ours, theirs, base.name, tuned.name)
        return Item(name, where, True, alpha, "base", own, shape)
    kind: Kind = "blend"
    if _stored_as(ours) == written and (alpha == 0.0 or _same(name, base, tuned)):
        kind = "base"
    elif alpha == 1.0 and _stored_as(theirs) == written:
        kind = "tuned"
    return Item(name, where, True, alpha, kind, written, shape)


def _own_dtype(name: str, base: EffectiveTensors, value: Source) -> torch.dtype:
    """The type it is stored in, also where an adapter puts another tensor in its place."""
    if name in base.store:
        return base.store.dtype(name)
    stored = base.head_piece.stored
    return base.store.dtype(stored) if stored in base.store else value.stored.dtype


def _same(name: str, base: EffectiveTensors, tuned: EffectiveTensors) -> bool:
    """Whether both parents have just what lies in one place on disk."""
    for piece in base.on_disk.get(name) or (replace(base.head_piece, name=base.head),):
        twin, origin = tuned.twin(base, piece), base.origin(piece)
        if twin is None or origin is None or origin != tuned.origin(twin):
            return False
    return True


def _stored_as(source: Source) -> torch.dtype | None:
    """The type of a tensor that needs no arithmetic, an adapter's replacement included."""
    return None if source.changed else source.stored.dtype


def _check_equal(name: str, base: Source, tuned: Source, *owners: str) -> None:
    ours, theirs = base.stored, tuned.stored
    if ours.dtype != theirs.dtype or not torch.equal(
        ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8)
    ):
        what = f"{name} is stored as {ours.dtype} in {owners[0]} and as {theirs.dtype} in {owners[1]}, and differs"
        raise MidblockError(what, hint="only floating-point weights can be merged; give full-precision originals")
