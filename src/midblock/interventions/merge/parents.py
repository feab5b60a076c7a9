"""The two parents of a merge, tensor for tensor on disk: what must be in both, and in one shape."""

from __future__ import annotations

from midblock.base import MidblockError
from midblock.checkpoints import (
    BUFFERS,
    Checkpoint,
    EffectiveTensors,
    Variant,
    projection_on_disk,
    value_on_disk,
    value_on_disk_like,
)


def open_parent(variant: Variant) -> EffectiveTensors:
    """Open a parent's files, an adapter's change folded in.

    Raises:
        MidblockError: a broken file, or an adapter that is no change of its base's tensors.
    """
    return EffectiveTensors.of_checkpoint(checkpoint_of(variant), variant.name)


def checkpoint_of(variant: Variant) -> Checkpoint:
    """The variant's files.

    Raises:
        MidblockError: it is in memory only.
    """
    if variant.checkpoint is None:
        raise MidblockError(f"{variant.name} has no files to merge")
    return variant.checkpoint


def shared(base: EffectiveTensors, tuned: EffectiveTensors) -> frozenset[str]:
    """Names on disk, in the base, of all that both parents have; heads apart.

    Raises:
        MidblockError: a tensor that only one of them has, or whose shapes differ; it is named. Buffers may be lonely,
            some programs write them and some do not.
    """
    for owner, other in ((base, tuned), (tuned, base)):
        lonely = [
            piece.stored
            for piece in owner.stored_pieces
            if piece.name not in other.by_name and piece.name != owner.head and not piece.stored.endswith(BUFFERS)
        ]
        if lonely:
            more = f" and {len(lonely) - 1} more" if len(lonely) > 1 else ""
            hint = "both must be of one architecture, tuned from one base"
            raise MidblockError(f"{owner.name} has the tensor {lonely[0]}{more}, {other.name} has not", hint=hint)
    found = [
        stored
        for stored, pieces in base.on_disk.items()
        if all(piece.name in tuned.by_name and piece.name != base.head for piece in pieces)
    ]
    for stored in found:
        _check_shape(stored, base, tuned)
    return frozenset(found)


def shared_head(base: EffectiveTensors, tuned: EffectiveTensors) -> str | None:
    """The head's name on disk, where a head is to be written: the base's files have one, or a parent is not tied.

    Raises:
        MidblockError: the heads differ in shape, or only one parent has one.
    """
    stored = next((piece.stored for piece in base.by_name.get(base.head, ())), None)
    if base.tied and tuned.tied and stored is None:
        return None
    for owner, other in ((base, tuned), (tuned, base)):
        if owner.has_head and not other.has_head:
            raise MidblockError(f"{owner.name} has the tensor {owner.head}, {other.name} has not")
    if not base.has_head:
        return None
    name = stored or base.head
    _check_shape(name, base, tuned)
    return name


def _check_shape(stored: str, base: EffectiveTensors, tuned: EffectiveTensors) -> None:
    ours, theirs = (
        list(each.stored.shape) for each in (value_on_disk(base, stored), value_on_disk_like(tuned, base, stored))
    )
    if ours == theirs:
        return
    vocabulary = projection_on_disk(base, stored).role in ("embedding", "head")
    rows = ours[1:] == theirs[1:] and vocabulary
    hint = "its vocabulary was resized: resize the other's too" if rows else "both must be tuned from one base"
    raise MidblockError(f"{stored} is {ours} in {base.name} and {theirs} in {tuned.name}", hint=hint)
