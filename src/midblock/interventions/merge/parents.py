"""The two parents of a merge, tensor for tensor on disk: what must be in both, and in one shape."""

from __future__ import annotations

from collections.abc import Iterator

from midblock.base import MidblockError
from midblock.checkpoints import (
    BUFFERS,
    Checkpoint,
    EffectiveTensors,
    Piece,
    Variant,
    check_readable,
    projection_on_disk,
    unread_note,
    value_on_disk,
    value_on_disk_like,
)
from midblock.checkpoints.roles import other_modality


def open_parent(variant: Variant) -> EffectiveTensors:
    """Open a parent's files, an adapter's change folded in.

    Raises:
        MidblockError: a broken file, an adapter that is no change of its base's tensors, or codes that are no weights.
    """
    return check_readable(EffectiveTensors.of_checkpoint(checkpoint_of(variant), variant.name))


def checkpoint_of(variant: Variant) -> Checkpoint:
    """The variant's files.

    Raises:
        MidblockError: it is in memory only.
    """
    if variant.checkpoint is None:
        raise MidblockError(f"{variant.name} has no files to merge")
    return variant.checkpoint


def shared(base: EffectiveTensors, tuned: EffectiveTensors) -> frozenset[str]:
    """Names on disk, in the base, of all that both parents' models have; heads apart.

    Raises:
        MidblockError: a tensor that only one of them has and the other needs, or whose shapes differ; it is named.
            Buffers may be lonely, some programs write them and some do not.
    """
    for owner, other in ((base, tuned), (tuned, base)):
        lonely = [piece.stored for piece in _lonely(owner, other) if not _elsewhere(piece, owner, other)]
        if lonely:
            more = f" and {len(lonely) - 1} more" if len(lonely) > 1 else ""
            hint = "both must be of one architecture, tuned from one base"
            raise MidblockError(f"{owner.name} has the tensor {lonely[0]}{more}, {other.name} has not", hint=hint)
    found = [
        stored
        for stored, pieces in base.on_disk.items()
        if not any(piece.unread or piece.name == base.head for piece in pieces)
        and all(tuned.name_of(base, piece.name) in tuned.by_name for piece in pieces)
    ]
    for stored in found:
        _check_shape(stored, base, tuned)
    return frozenset(found)


def added(base: EffectiveTensors, tuned: EffectiveTensors) -> list[str]:
    """Names on disk of prediction modules and the like that just the tuned model's files have, named as the base's."""
    if base.anatomy.names != tuned.anatomy.names:
        return []
    there = set(base.on_disk)
    return [piece.stored for piece in tuned.unread if piece.stored not in there and not other_modality(piece.name)]


def parent_notes(base: EffectiveTensors, tuned: EffectiveTensors) -> Iterator[str]:
    """What a reader must know of tensors that were not mixed."""
    more = frozenset(added(base, tuned))
    others = frozenset(tuned.on_disk) - more - frozenset(base.on_disk)
    yield from unread_note(base, therefore="they are the base's")
    yield from unread_note(tuned, only=more, therefore="they are the tuned model's, the base has none")
    yield from unread_note(tuned, only=others)
    for owner, other, fate in ((base, tuned, "they are the base's"), (tuned, base, "they are left out")):
        if lonely := [piece.stored for piece in _lonely(owner, other)]:
            yield f"{len(lonely)} tensors ({lonely[0]} …) are no part of {other.name}'s model: {fate}."
    for owner in (base, tuned):
        if owner.coded:
            kinds = ", ".join(sorted({codes.kind for codes in owner.coded.values()}))
            yield f"{owner.name} stores {len(owner.coded)} weights as {kinds}: mixed is what codes and scales mean."
    if base.coded:
        yield "The merge is not quantised: its config.json has no quantization_config."


def _lonely(owner: EffectiveTensors, other: EffectiveTensors) -> list[Piece]:
    return [
        piece
        for piece in owner.stored_pieces
        if other.name_of(owner, piece.name) not in other.by_name
        and not (piece.unread or piece.name == owner.head or piece.stored.endswith(BUFFERS))
    ]


def _elsewhere(piece: Piece, owner: EffectiveTensors, other: EffectiveTensors) -> bool:
    """Whether a tensor belongs to a tower or bridge that the other model, text alone, does not have."""
    decoder = tuple(f"{path}." for path in owner.anatomy.names.values() if path)
    named = other.name_of(owner, piece.name)
    return bool(decoder) and not piece.name.startswith(decoder) and named not in other.anatomy.projections


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
