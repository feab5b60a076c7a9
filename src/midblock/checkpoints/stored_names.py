"""From names on disk to names in memory, as transformers maps them, each tensor on disk a known piece of a parameter.

Checkpoints keep names and shapes that their models gave up: Mixtral's file has `block_sparse_moe.experts.3.w1.weight`
where the model has a slice of `mlp.experts.gate_up_proj`. transformers holds a table of such conversions for each
architecture; it is followed here on names and shapes alone, so that no weight is read. Cost: some milliseconds.
Source: `transformers.conversion_mapping`, `transformers.core_model_loading`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from midblock.checkpoints.pieces import Piece
from midblock.checkpoints.projections import Region
from midblock.checkpoints.skeleton import KEPT
from midblock.checkpoints.turns import Transposition, Turn, Unweaving

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
    prefix, known, shapes = str(skeleton.base_model_prefix), _held(skeleton), dict(stored_shapes)
    found: dict[str, list[Piece]] = {name: [] for name in shapes}
    gathered: dict[str, dict[str, list[str]]] = {}
    for stored in sorted(shapes, key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, known)
        if name not in known and stored in known:
            name, pattern = rename_source_key(stored, [], [], prefix, known)
        if name not in known:
            found[stored].append(Piece(rename_source_key(stored, renamings, [], prefix, known)[0], stored, unread=True))
        elif pattern is None:
            found[stored].append(Piece(name, stored))
        else:
            gathered.setdefault(name, {}).setdefault(pattern, []).append(stored)
    sizes = {name: tuple(value.shape) for name, value in known.items()}
    for name, sources in gathered.items():
        for piece in _converted(name, sources, by_pattern[next(iter(sources))], shapes, sizes):
            found[piece.stored].append(piece)
    return tuple(piece for pieces in found.values() for piece in pieces)


def _held(skeleton: nn.Module) -> dict[str, Tensor]:
    """All that a file may fill: parameters under each of their names, and buffers, those too that are not saved."""
    return {**dict(skeleton.named_buffers(remove_duplicate=False)), **dict(skeleton.state_dict())}


def _converted(
    name: str,
    sources: Mapping[str, Sequence[str]],
    converter: WeightConverter,
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, tuple[int, ...]],
) -> list[Piece]:
    """Follow a conversion's operations on shapes.

    Args:
        name: of the first parameter that it makes.
        sources: for each of its source patterns, the tensors on disk that fit it, in order.
        shapes: of the tensors on disk.
        sizes: of the parameters.
    """
    made_of = _Made(name, converter, sizes)
    stacks = {pattern: [_whole(stored, shapes[stored]) for stored in names] for pattern, names in sources.items()}
    for operation in converter.operations:
        kind = type(operation).__name__
        made = _OPERATIONS[kind](stacks, made_of, operation) if kind in _OPERATIONS else None
        if made is None:
            return [Piece(each, each, opaque=kind) for names in sources.values() for each in names]
        stacks = made
    key = next((pattern for pattern in stacks if pattern in name), "")
    before, _, after = name.partition(key)
    return [
        replace(piece, name=f"{before}{pattern}{after}" if key else name, region=_part(piece, stack))
        for pattern, (stack, *_) in stacks.items()
        for piece in stack.pieces
    ]


@dataclass(frozen=True)
class _Made:
    """What a conversion makes: the name of its first parameter, itself, and the shapes of all parameters."""

    name: str
    converter: WeightConverter
    sizes: Mapping[str, tuple[int, ...]]

    @property
    def targets(self) -> list[str]:
        return list(self.converter.target_patterns)


def _part(piece: Piece, stack: _Stack) -> Region:
    """Where a piece lies in what it is a piece of; empty where it is all of it."""
    return () if piece.region == _all(stack.shape) else piece.region


def _all(shape: tuple[int, ...]) -> Region:
    return tuple((0, side) for side in shape)


def _whole(stored: str, shape: tuple[int, ...]) -> _Stack:
    return _Stack(shape, (Piece(stored, stored, _all(shape)),))


_Stacks = dict[str, list[_Stack]]


def _merged(stacks: _Stacks, made_of: _Made, operation: Any) -> _Stacks | None:
    """Lists of tensors, each put on top of one another along a new first dimension."""
    if operation.dim != 0:
        return None
    only = made_of.targets[0] if len(stacks) == 1 else None
    made: _Stacks = {}
    for pattern, several in stacks.items():
        pieces = [replace(p, region=(index, *p.region)) for index, each in enumerate(several) for p in each.pieces]
        made[only or pattern] = [_Stack((len(several), *several[0].shape), tuple(pieces))]
    return made


def _concatenated(stacks: _Stacks, made_of: _Made, operation: Any) -> _Stacks | None:
    """Tensors put one behind the other along a dimension, in the order of the patterns."""
    ordered = [each for pattern in made_of.converter.source_patterns for each in stacks.get(pattern, [])]
    dim, start, pieces = operation.dim % len(ordered[0].shape), 0, []
    for each in ordered:
        pieces += [_moved(piece, dim, start) for piece in each.pieces]
        start += each.shape[dim]
    shape = (*ordered[0].shape[:dim], start, *ordered[0].shape[dim + 1 :])
    return {made_of.targets[0]: [_Stack(shape, tuple(pieces))]}


def _moved(piece: Piece, dim: int, by: int) -> Piece:
    side = piece.region[dim]
    moved = side + by if isinstance(side, int) else (side[0] + by, side[1] + by)
    return replace(piece, region=(*piece.region[:dim], moved, *piece.region[dim + 1 :]))


def _chunked(stacks: _Stacks, made_of: _Made, operation: Any) -> _Stacks | None:
    """One tensor parted into equal ones along a dimension, one for each target."""
    stack, count = _only(stacks), len(made_of.targets)
    if operation.num_shards_attribute is not None or stack is None or stack.shape[operation.dim] % count:
        return None
    return _parted(stack, made_of, operation.dim, [stack.shape[operation.dim] // count] * count)


def _split(stacks: _Stacks, made_of: _Made, operation: Any) -> _Stacks | None:
    """One tensor parted along a dimension into the shapes that its targets have in the model."""
    stack, (first, *_) = _only(stacks), made_of.targets
    names = [made_of.name.replace(first, target) for target in made_of.targets]
    if stack is None or not all(name in made_of.sizes for name in names):
        return None
    sizes = [made_of.sizes[name][operation.dim] for name in names]
    return _parted(stack, made_of, operation.dim, sizes) if sum(sizes) == stack.shape[operation.dim] else None


def _transposed(stacks: _Stacks, made_of: _Made, operation: Any) -> _Stacks | None:
    """One tensor with two dimensions exchanged; of some families only where the model has them otherwise."""
    stack = _only(stacks)
    if stack is None or (operation.check_dims and made_of.name not in made_of.sizes):
        return None
    target = made_of.targets[0] if len(made_of.targets) == 1 else next(iter(stacks))
    if operation.check_dims and stack.shape == made_of.sizes[made_of.name]:
        return {target: [stack]}
    sides = len(stack.shape)
    return _turned(stack, target, Transposition(operation.dim0 % sides, operation.dim1 % sides))


def _unwoven(stacks: _Stacks, made_of: _Made, operation: Any) -> _Stacks | None:
    """One tensor whose entries along a dimension belong to two halves in turn."""
    stack = _only(stacks)
    if stack is None or stack.shape[operation.dim] % 2:
        return None
    turn = Unweaving(operation.dim % len(stack.shape), bool(operation.inverse))
    return _turned(stack, made_of.targets[0], turn)


def _only(stacks: _Stacks) -> _Stack | None:
    """The one tensor there is; None where there are several, or parts of one."""
    several = [stack for each in stacks.values() for stack in each]
    return several[0] if len(several) == 1 and len(several[0].pieces) == 1 else None


def _turned(stack: _Stack, target: str, turn: Turn) -> _Stacks | None:
    (piece,), shape = stack.pieces, turn.shape(stack.shape)
    if piece.turn is not None or piece.inside:
        return None
    whole = _all(shape)
    return {target: [_Stack(shape, (replace(piece, region=whole, inside=whole, turn=turn),))]}


def _parted(stack: _Stack, made_of: _Made, dim: int, sizes: Sequence[int]) -> _Stacks:
    (piece,), dim, start, made = stack.pieces, dim % len(stack.shape), 0, {}
    for target, size in zip(made_of.targets, sizes, strict=True):
        shape = (*stack.shape[:dim], size, *stack.shape[dim + 1 :])
        inside = _rows(stack.shape, dim, start, size)
        made[target], start = [_Stack(shape, (replace(piece, region=(), inside=inside),))], start + size
    return made


def _rows(shape: tuple[int, ...], dim: int, start: int, size: int) -> Region:
    return tuple((start, start + size) if at == dim else (0, side) for at, side in enumerate(shape))


# what transformers' operations do to boxes; None where it is more than that. Not followed are PermuteForRope (vision
# towers of kimi_k25, step3p5 and mistral_large4, gradium_phonon_tts) and ErnieFuseAndSplitTextVisionExperts
_OPERATIONS: Mapping[str, Callable[[_Stacks, _Made, Any], _Stacks | None]] = {
    "MergeModulelist": _merged,
    "Concatenate": _concatenated,
    "Chunk": _chunked,
    "Split": _split,
    "Transpose": _transposed,
    "Interleave": _unwoven,
}
