"""From names on disk to names in memory, as transformers maps them, each tensor on disk a known piece of a parameter.

Checkpoints keep names and shapes that their models gave up: Mixtral's file has `block_sparse_moe.experts.3.w1.weight`
where the model has a slice of `mlp.experts.gate_up_proj`. transformers holds a table of such conversions for each
architecture; it is followed here on names and shapes alone, so that no weight is read. Cost: some milliseconds.
Source: `transformers.conversion_mapping`, `transformers.core_model_loading`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import nn

from midblock.checkpoints.pieces import Piece
from midblock.checkpoints.projections import Region
from midblock.checkpoints.skeleton import KEPT

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightConverter


@dataclass(frozen=True)
class _Stack:
    """A tensor put together: its shape, and the pieces it has, each with a full region."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def pieces_of(shapes: Mapping[str, tuple[int, ...]], skeleton: nn.Module) -> tuple[Piece, ...]:
    """Say of every tensor on disk what it is in memory; the models of a pair have the same answer, found once.

    Args:
        shapes: of the tensors on disk, in their order there.
        skeleton: the model, for its names and shapes.

    Returns:
        Pieces in the order of `shapes`; a tensor that fills several parameters has several.
    """
    return _found(tuple(shapes.items()), skeleton)


@lru_cache(maxsize=KEPT)
def _found(stored_shapes: tuple[tuple[str, tuple[int, ...]], ...], skeleton: nn.Module) -> tuple[Piece, ...]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    table: Any = get_model_conversion_mapping(skeleton)  # type: ignore[arg-type]
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix, known, shapes = str(skeleton.base_model_prefix), dict(skeleton.state_dict()), dict(stored_shapes)
    found: dict[str, list[Piece]] = {name: [] for name in shapes}
    gathered: dict[str, dict[str, list[str]]] = {}
    for stored in sorted(shapes, key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, known)
        if name not in known and stored in known:
            name, pattern = rename_source_key(stored, [], [], prefix, known)
        if pattern is None or name not in known:
            found[stored].append(Piece(name if pattern is None else stored, stored))
        else:
            gathered.setdefault(name, {}).setdefault(pattern, []).append(stored)
    for name, sources in gathered.items():
        for piece in _converted(name, sources, by_pattern[next(iter(sources))], shapes):
            found[piece.stored].append(piece)
    return tuple(piece for pieces in found.values() for piece in pieces)


def _converted(
    name: str,
    sources: Mapping[str, Sequence[str]],
    converter: WeightConverter,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Piece]:
    """Follow a conversion's operations on shapes.

    Args:
        name: of the first parameter that it makes.
        sources: for each of its source patterns, the tensors on disk that fit it, in order.
    """
    stacks = {pattern: [_whole(stored, shapes[stored]) for stored in names] for pattern, names in sources.items()}
    for operation in converter.operations:
        kind = type(operation).__name__
        made = _OPERATIONS[kind](stacks, converter, operation) if kind in _OPERATIONS else None
        if made is None:
            return [Piece(each, each, opaque=kind) for names in sources.values() for each in names]
        stacks = made
    key = next((pattern for pattern in stacks if pattern in name), "")
    before, _, after = name.partition(key)
    return [
        replace(piece, name=f"{before}{pattern}{after}" if key else name)
        for pattern, (stack, *_) in stacks.items()
        for piece in stack.pieces
    ]


def _whole(stored: str, shape: tuple[int, ...]) -> _Stack:
    return _Stack(shape, (Piece(stored, stored, tuple((0, side) for side in shape)),))


_Stacks = dict[str, list[_Stack]]


def _merged(stacks: _Stacks, converter: WeightConverter, operation: Any) -> _Stacks | None:
    """Lists of tensors, each put on top of one another along a new first dimension."""
    if operation.dim != 0:
        return None
    only = converter.target_patterns[0] if len(stacks) == 1 else None
    made: _Stacks = {}
    for pattern, several in stacks.items():
        pieces = [replace(p, region=(index, *p.region)) for index, each in enumerate(several) for p in each.pieces]
        made[only or pattern] = [_Stack((len(several), *several[0].shape), tuple(pieces))]
    return made


def _concatenated(stacks: _Stacks, converter: WeightConverter, operation: Any) -> _Stacks | None:
    """Tensors put one behind the other along a dimension, in the order of the patterns."""
    if operation.num_shards_attribute is not None:
        return None
    ordered = [each for pattern in converter.source_patterns for each in stacks.get(pattern, [])]
    dim, start, pieces = operation.dim % len(ordered[0].shape), 0, []
    for each in ordered:
        pieces += [_moved(piece, dim, start) for piece in each.pieces]
        start += each.shape[dim]
    shape = (*ordered[0].shape[:dim], start, *ordered[0].shape[dim + 1 :])
    return {converter.target_patterns[0]: [_Stack(shape, tuple(pieces))]}


def _moved(piece: Piece, dim: int, by: int) -> Piece:
    side = piece.region[dim]
    moved = side + by if isinstance(side, int) else (side[0] + by, side[1] + by)
    return replace(piece, region=(*piece.region[:dim], moved, *piece.region[dim + 1 :]))


def _chunked(stacks: _Stacks, converter: WeightConverter, operation: Any) -> _Stacks | None:
    """One tensor parted into equal ones along a dimension, one for each target."""
    several = next(iter(stacks.values()))
    if operation.num_shards_attribute is not None or len(stacks) > 1 or len(several) > 1:
        return None
    stack, count = several[0], len(converter.target_patterns)
    dim = operation.dim % len(stack.shape)
    if len(stack.pieces) > 1 or stack.shape[dim] % count:
        return None
    size, (piece,) = stack.shape[dim] // count, stack.pieces
    shape = (*stack.shape[:dim], size, *stack.shape[dim + 1 :])
    return {
        target: [_Stack(shape, (replace(piece, region=(), inside=_rows(stack.shape, dim, at * size, size)),))]
        for at, target in enumerate(converter.target_patterns)
    }


def _rows(shape: tuple[int, ...], dim: int, start: int, size: int) -> Region:
    return tuple((start, start + size) if at == dim else (0, side) for at, side in enumerate(shape))


# what transformers' operations do to boxes; None where it is more than that
_OPERATIONS = {"MergeModulelist": _merged, "Concatenate": _concatenated, "Chunk": _chunked}
