"""What becomes of each tensor of a merge: whose bytes are copied, what is computed, and in which file it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from midblock.base import MidblockError
from midblock.interventions.alphas import Alphas
from midblock.interventions.parents import Parent, pair_heads, pair_names
from midblock.metrics.weight_comparison import BUFFERS

Kind = Literal["base", "tuned", "blend"]


@dataclass(frozen=True)
class Item:
    """One tensor to write.

    Attributes:
        name: in the base and in the merge.
        tuned_name: in the tuned model; None where that has no such buffer.
        alpha: α.
        kind: whose bytes are copied, or "blend" for what is computed.
        dtype, shape: as it is written.
    """

    name: str
    tuned_name: str | None
    alpha: float
    kind: Kind
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return torch.Size(self.shape).numel()


def plan_files(base: Parent, tuned: Parent, alphas: Alphas, dtype: torch.dtype | None) -> list[list[Item]]:
    """Decide for every tensor of the base what becomes of it.

    Args:
        dtype: of every floating-point tensor written; None for the base's own.

    Returns:
        The tensors that go into the counterpart of each file of the base; a head that the base's files lack comes last.

    Raises:
        MidblockError: tensors that one parent lacks or has in another shape, and quantised ones that differ.
    """
    heads = pair_heads(base, tuned)
    pairs = pair_names(base, tuned) | heads
    homes: dict[Path, list[Item]] = {}
    for name in base.reader.names:
        item = _item(name, pairs.get(name), base, tuned, alphas, dtype)
        homes.setdefault(base.reader.file(name), []).append(item)
    files = list(homes.values())
    files[-1] += [_item(name, pairs[name], base, tuned, alphas, dtype) for name in heads if name not in base.reader]
    return files


def _item(name: str, other: str | None, base: Parent, tuned: Parent, alphas: Alphas, dtype: torch.dtype | None) -> Item:
    own, shape = base.dtype(name), base.shape(name)
    written = dtype if dtype is not None and own.is_floating_point and own.itemsize > 1 else own
    if other is None or name.endswith(BUFFERS):
        return Item(name, None, 0.0, "base", own, shape)
    alpha = alphas.embedding if name == base.head and base.tied and tuned.tied else alphas.of(name)
    if not _computable(own) or not _computable(tuned.dtype(other)):
        _check_equal(name, other, base, tuned)
        return Item(name, other, alpha, "base", own, shape)
    return Item(name, other, alpha, _kind(name, other, base, tuned, alpha, written), written, shape)


def _kind(name: str, other: str, base: Parent, tuned: Parent, alpha: float, written: torch.dtype) -> Kind:
    ours, theirs = base.stored_at(name), tuned.stored_at(other)
    if _stored_in(base, name) == written and (alpha == 0.0 or (ours is not None and ours == theirs)):
        return "base"
    if alpha == 1.0 and _stored_in(tuned, other) == written:
        return "tuned"
    return "blend"


def _stored_in(parent: Parent, name: str) -> torch.dtype | None:
    """The type of a tensor that needs no arithmetic, an adapter's replacement included."""
    source = parent.source(name)
    return None if source.delta is not None else source.stored.dtype


def _computable(dtype: torch.dtype) -> bool:
    """Whether numbers of the type can be blended; one byte is a quantised weight."""
    return dtype.is_floating_point and dtype.itemsize > 1


def _check_equal(name: str, other: str, base: Parent, tuned: Parent) -> None:
    ours, theirs = base.source(name).stored, tuned.source(other).stored
    if ours.dtype != theirs.dtype or not torch.equal(
        ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8)
    ):
        what = f"{name} is stored as {ours.dtype} in {base.name} and as {theirs.dtype} in {tuned.name}, and differs"
        raise MidblockError(what, hint="only floating-point weights can be merged; give full-precision originals")
