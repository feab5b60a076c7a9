"""Whether a model's files are those of its config: as many tensors as it counts parts, in the shapes that it asks for.

transformers takes the memory that a config asks for, whatever the files hold, and fills what they lack by chance. So
both are compared before, by headers alone. Cost: a look at names and shapes; at nothing where counts are ordinary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.base.files import size_text
from midblock.base.json_file import shown
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.pieces import Piece, box, extent, grouped
from midblock.checkpoints.projections import Region
from midblock.checkpoints.tensors import TensorReader, same_bits

ORDINARY = 512  # parts that are built without a look at the files: that many cost no time
SPARE = 2**30  # bytes that a model may make besides what its files hold, however small it is
PACKED = 16  # how many times larger weights may be than the codes that they are stored as
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@runtime_checkable
class Stored(Protocol):
    """Tensors by the names on disk."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...


@runtime_checkable
class Readable(Protocol):
    """Tensors by the names on disk, with their values and files."""

    def read(self, name: str) -> Tensor: ...

    def file(self, name: str) -> Path | None: ...


def check_counts(config: Mapping[str, Any], folder: Path, *, allow_pickle: bool = False) -> None:
    """Do nothing if the files in a folder may hold as many blocks and experts as its config counts.

    A block has a tensor of its own; an expert has one, or a row of one that all share.

    Raises:
        MidblockError: they cannot; the key is named.
    """
    inner = config.get("text_config")
    parts = [config, *([inner] if isinstance(inner, dict) else [])]
    stated = [(key, part[key]) for part in parts for key in (*DEPTHS, *EXPERTS) if isinstance(part.get(key), int)]
    if all(count <= ORDINARY for _, count in stated):
        return
    with TensorReader.open(folder, allow_pickle=allow_pickle) as files:
        sides = max((side for name in files.names for side in files.shape(name)), default=0)
        for key, count in stated:
            if count > max(len(files), ORDINARY if key in DEPTHS else sides):
                what = f"{folder / 'config.json'}: {key} is {count}, but the files hold {len(files)} tensors in all"
                raise MidblockError(what, hint="config and weights do not belong together: fetch both again")


def check_quantisation(config: Mapping[str, Any], folder: Path, *, allow_pickle: bool = False) -> None:
    """Do nothing if a config that calls its weights quantised says how, or they are seen to be codes (`readable`).

    Raises:
        MidblockError: it names a method that nobody knows, and the files hold plain numbers.
    """
    asked = config.get("quantization_config")
    method = asked.get("quant_method") if isinstance(asked, dict) else None
    if method is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if method in (*AUTO_QUANTIZER_MAPPING, "bitsandbytes"):
        return
    with TensorReader.open(folder, allow_pickle=allow_pickle) as files:
        if any(not files.dtype(name).is_floating_point or files.dtype(name).itemsize == 1 for name in files.names):
            return
    what = f"{folder / 'config.json'}: quantization_config names the unknown method {shown(method)}"
    raise MidblockError(what, hint="the files hold plain numbers: take it out if that is right")


def check_shapes(pieces: Iterable[Piece], store: Stored, skeleton: nn.Module, name: str) -> None:
    """Do nothing if all that the files hold of a model's parameters has the shape that its config asks for.

    Codes of weights are looked at elsewhere (`readable`): their shapes are their own.

    Raises:
        MidblockError: a tensor has not; it is named, and the key of the config where that can be told.
    """
    wanted = {each: tuple(value.shape) for each, value in skeleton.state_dict().items()}
    for parameter, parts in grouped(tuple(pieces), "name").items():
        if parameter not in wanted or any(each.opaque or _coded(store, each) for each in parts):
            continue
        found = _found(parts, store)
        if found != wanted[parameter]:
            what = f"{name}: {parts[0].stored} is {list(found)}, its config wants {list(wanted[parameter])}"
            raise MidblockError(what, hint=_hint(skeleton, found, wanted[parameter]))


def check_blocks(pieces: Iterable[Piece], anatomy: Anatomy, name: str) -> None:
    """Do nothing if the files hold something of every block that has weights of its own.

    Raises:
        MidblockError: they hold nothing of one; the first is named.
    """
    there = {anatomy.projection_of(each.name).block for each in pieces}
    own = {each.block for each in anatomy.projections.values() if each.block is not None}
    if lacking := sorted(own - there):
        what = f"{name}: its config counts {len(anatomy)} blocks, its files hold nothing of block {lacking[0]}"
        raise MidblockError(what, hint="config and weights do not belong together: fetch both again")


def without_copies(pieces: tuple[Piece, ...], store: Readable, name: str) -> tuple[Piece, ...]:
    """The pieces, of those that fill one place of the model with the same values just one.

    transformers takes one of them, by an order of its own. Cost: a look at the places; only tensors that share one are
    read. A tied head is a place of its own.

    Raises:
        MidblockError: two have different values; both are named.
    """
    copies: set[int] = set()
    read = grouped([each for each in pieces if not each.unread and not each.opaque], "name")
    for first, second in (pair for several in read.values() for pair in _sharing(several)):
        if not _equal(store, first, second):
            both = " and ".join(f"{each.stored} ({_file(store, each)})" for each in (first, second))
            what = f"{name}: {both} are both {first.name}, with different values"
            raise MidblockError(what, hint="remove the one that is not the model's")
        copies.add(id(second))
    return tuple(each for each in pieces if id(each) not in copies) if copies else pieces


def _sharing(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Piece]]:
    """Pairs of one parameter's pieces, of two tensors on disk, in one place; the first may be all of the parameter."""
    if len(pieces) == 1:
        return
    whole = next((each for each in pieces if not each.region), None)
    taken: dict[Region, Piece] = {}
    for each in pieces:
        first = whole or taken.setdefault(each.region, each)
        if first.stored != each.stored:
            yield first, each


def _equal(store: Readable, first: Piece, second: Piece) -> bool:
    whole, part = _value(store, first), second.region
    if first.region or not part:
        return same_bits(whole, _value(store, second))
    fits = len(part) == whole.ndim and all(map(int.__le__, extent([part]), whole.shape))
    return fits and same_bits(box(whole, part), _value(store, second))


def _value(store: Readable, piece: Piece) -> Tensor:
    read = store.read(piece.stored)
    return box(read if piece.turn is None else piece.turn.apply(read), piece.inside)


def _file(store: Readable, piece: Piece) -> str:
    file = store.file(piece.stored)
    return file.name if file is not None else "in memory"


def check_memory(skeleton: nn.Module, stored: int, name: str) -> None:
    """Do nothing if a model asks for about as much memory as its files hold, tables (masks, positions) included.

    Args:
        stored: bytes of all tensors in the files.

    Raises:
        MidblockError: it asks for much more; the largest part is named.
    """
    saved = skeleton.state_dict()
    weights = {each: value.nbytes for each, value in skeleton.named_parameters()}
    tables = {each: value.nbytes for each, value in skeleton.named_buffers() if each not in saved}
    for parts, most in ((weights, PACKED * stored), (tables, sum(weights.values()))):
        if sum(parts.values()) > most + SPARE:
            largest = max(parts, key=lambda each: parts[each])
            what = f"{name}: its config asks for {largest} of {size_text(parts[largest])}, its files hold"
            hint = "a size in its config.json is wrong: fetch config and weights again"
            raise MidblockError(f"{what} {size_text(stored)} in all", hint=hint)


def _coded(store: Stored, piece: Piece) -> bool:
    kind = store.dtype(piece.stored)
    return not kind.is_floating_point or kind.itemsize == 1


def _found(parts: tuple[Piece, ...], store: Stored) -> tuple[int, ...]:
    """The shape that pieces make together."""
    if parts[0].region:
        return extent([each.region for each in parts])
    (piece, *_) = parts
    shape = store.shape(piece.stored)
    if piece.inside:
        return tuple(side[1] - side[0] for side in piece.inside if isinstance(side, tuple))
    return piece.turn.shape(shape) if piece.turn is not None else shape


def _hint(skeleton: nn.Module, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Which key of the config is wrong, where its value is a side that the files have otherwise."""
    config: Any = skeleton.config
    other = {asked for asked, has in zip(wanted, found, strict=False) if asked != has}
    stated = config.get_text_config().to_dict().items()
    key = next((key for key, value in stated if type(value) is int and value > 1 and value in other), None)
    said = f"its {key} is not that of the weights: " if key else ""
    return f"{said}config and weights do not belong together, fetch both again"
