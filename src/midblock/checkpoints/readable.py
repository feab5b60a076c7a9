"""What of a model's files is no weight of it: tensors that transformers does not load, and codes of an unknown kind.

Neither may be counted: a prediction module behind the last block (`mtp.*`, `model.layers.L.*`) is no block of the
decoder, and codes of quantised weights are no numbers to compare. The first is said, the second refused. Cost: a look
at names and types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import torch

from midblock.base import MidblockError
from midblock.checkpoints.effective import EffectiveTensors
from midblock.checkpoints.pieces import Piece

NAMED = 4  # prefixes that a note names


def check_readable(tensors: EffectiveTensors) -> EffectiveTensors:
    """Return the tensors if every weight is known as numbers.

    Raises:
        MidblockError: some are stored as codes of an unknown kind; one is named.
    """
    codes = unreadable(tensors)
    if not codes:
        return tensors
    first, *more = codes
    kind = str(tensors.store.dtype(first)).removeprefix("torch.")
    rest = f" and {len(more)} more tensors" if more else ""
    what = f"{tensors.name} stores {first}{rest} as codes ({kind}) whose meaning is not known, not as weights"
    raise MidblockError(what, hint="it is quantised: give the full-precision original, or dequantise it first")


def unreadable(tensors: EffectiveTensors) -> list[str]:
    """Names on disk of what stands in a weight's place and is no number, in the order of the files."""
    known, there = tensors.anatomy.projections, tensors.by_name
    whole = {name for name, value in tensors.anatomy.model.named_parameters() if not value.is_floating_point()}
    found = []
    for piece in tensors.stored_pieces:
        weight = f"{piece.name.rpartition('.')[0]}.weight"
        stands_for_it = piece.unread and weight in known and weight not in there
        kind = tensors.store.dtype(piece.stored)
        if (piece.name in known or stands_for_it) and not computable(kind) and piece.name not in whole:
            found.append(piece.stored)
    return found


def computable(dtype: torch.dtype) -> bool:
    """Whether numbers of the type can be computed with; one byte holds codes."""
    return dtype.is_floating_point and dtype.itemsize > 1


def unread_note(
    *models: EffectiveTensors, only: Collection[str] | None = None, therefore: str = "they are left out"
) -> list[str]:
    """At most one note: what the models' files hold that transformers does not load, by the beginning of its names.

    Args:
        only: names on disk of those that count; None for all.
        therefore: what becomes of them.
    """
    found: Counter[str] = Counter()
    owners = []
    for model in models:
        known = _beginnings(model.anatomy.projections)
        pieces = [piece for piece in model.unread if only is None or piece.stored in only]
        found |= Counter(_beginning(piece, known) for piece in pieces)
        owners += [model.name] if pieces else []
    if not found:
        return []
    first = found.most_common(NAMED)
    rest = sum(found.values()) - sum(count for _, count in first)
    named = ", ".join([*(f"{count} in {name}" for name, count in first), *([f"{rest} more"] if rest else [])])
    tensors = "1 tensor" if sum(found.values()) == 1 else f"{sum(found.values())} tensors"
    return [
        f"{tensors} in the files of {' and '.join(owners)} ({named}) are no part of the model, transformers does not "
        f"load them: {therefore}."
    ]


def _beginnings(names: Iterable[str]) -> frozenset[str]:
    """All that a parameter's name begins with, up to a dot."""
    parts = (name.split(".") for name in names)
    return frozenset(".".join(each[:end]) for each in parts for end in range(1, len(each) + 1))


def _beginning(piece: Piece, known: frozenset[str]) -> str:
    """The shortest beginning of a name that no parameter has: `mtp.*`, `model.layers.46.*`."""
    parts = piece.name.split(".")
    starts = (".".join(parts[:end]) for end in range(1, len(parts)))
    start = next((each for each in starts if each not in known), None)
    return piece.name if start is None else f"{start}.*"
