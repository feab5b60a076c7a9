"""Base plus adapter as one checkpoint, tensor by tensor: no model is built, memory holds a few tensors.

W' = f ⊙ (W + s·B·A), f DoRA's factor or 1. Each file of the base becomes one file, under the base's names on disk: an
expert that lies there by itself gets its own slice of a stacked change. What the adapter does not touch is written as
it was, bit for bit; what it touches is computed in float64 and rounded once. Cost: one pass over the base, and one over
what was written to compare it. Described in docs/tuning/export.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from midblock.base import MidblockError, write_json
from midblock.checkpoints import (
    Checkpoint,
    EffectiveTensors,
    LowRankDelta,
    Source,
    TensorReader,
    exact_rows,
    value_on_disk,
)
from midblock.checkpoints.adapter import Adapter
from midblock.checkpoints.checkpoint_files import copy_small_files, copy_tokenizer_of_adapter, write_config
from midblock.checkpoints.tensor_writer import write_tensors
from midblock.checkpoints.weight_files import INDEX, SINGLE

CHUNK = 2**24  # entries computed at a time, in float64


@dataclass(frozen=True)
class Merge:
    """What every tensor of the merged checkpoint is made of.

    Attributes:
        tensors: the base's, with the adapter folded in.
        dtype: of every floating-point tensor written; None for each one's own.
    """

    tensors: EffectiveTensors
    dtype: torch.dtype | None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor to write, by its name on disk; last a head that the adapter untied."""
        own = self.tensors
        lacking = own.has_head and not own.tied and own.head not in own.by_name
        return (*own.on_disk, *((own.head,) if lacking else ()))

    @cached_property
    def touched(self) -> frozenset[str]:
        """Names of the tensors that the adapter changes or adds."""
        own = self.tensors
        kept = {
            stored
            for stored, pieces in own.on_disk.items()
            if all(own.origin(piece) is not None for piece in pieces)
            and not (own.tied and pieces[0].name == own.head and own.embedding in own.changes.names)
        }
        return frozenset(self.names) - kept

    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape that a tensor is written in."""
        own = self.tensors
        source = value_on_disk(own, name)
        stored = name if name in own.store else own.head_piece.stored
        kind = own.store.dtype(stored) if stored in own.store else source.stored.dtype
        return (self.dtype if self.dtype and kind.is_floating_point else kind), tuple(source.stored.shape)

    def value(self, name: str) -> Shaped[Tensor, "*shape"]:
        """The tensor to write.

        Raises:
            MidblockError: it does not fit into the type.
        """
        source, (dtype, shape) = value_on_disk(self.tensors, name), self.entry(name)
        if not source.changed:
            made = source.stored.to(dtype)
        else:
            made = torch.empty(shape, dtype=dtype)
            for rows, exact in exact_rows(source, CHUNK):
                made[rows] = exact.to(dtype)
        if source.stored.dtype != dtype or source.changed:
            _check_fits(name, source.stored, made)
        return made

    def exact(self, name: str) -> Iterator[tuple[slice, Float64[Tensor, "rows *rest"]]]:
        """What a touched tensor should be, some rows at a time."""
        return exact_rows(value_on_disk(self.tensors, name), CHUNK)


def write_merged(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> float:
    """Write the merged checkpoint with config and tokenizer, and compare it with what it should be.

    Tied embeddings stay tied as long as the adapter changes the embedding and the head alike; else they are untied, as
    they are in PEFT's model (its own merge adds a head's change to the embedding too).

    Args:
        checkpoint: an adapter on its base.
        folder: an existing, empty folder.
        dtype: of every floating-point tensor; None for the base's own.

    Returns:
        The largest ‖ΔW′ − ΔW‖ / ‖ΔW‖ (Frobenius) over the tensors with a low-rank change: what rounding took away.

    Raises:
        MidblockError: the adapter cannot be read as changes of the base's tensors, a tensor does not fit, the disk is
            full, or what was written reads back otherwise.
    """
    adapter = adapter_of(checkpoint)
    with EffectiveTensors.of_checkpoint(checkpoint) as tensors:
        _check(tensors)
        merge, changes = Merge(tensors, dtype), _config_changes(tensors, checkpoint)
        _write_weights(merge, folder)
        copy_small_files(checkpoint.folder, folder, code=checkpoint.trust_remote_code)
        copy_tokenizer_of_adapter(adapter.folder, folder)
        if dtype is not None:
            changes["dtype"] = str(dtype).removeprefix("torch.")
        write_config(checkpoint.folder, folder, changes)
        with TensorReader.open(folder) as written:
            return max((rounding_loss(merge, name, written) for name in sorted(merge.touched)), default=0.0)


def adapter_of(checkpoint: Checkpoint) -> Adapter:
    """The checkpoint's adapter.

    Raises:
        MidblockError: it has none.
    """
    if checkpoint.adapter is None:
        raise MidblockError(f"{checkpoint.reference} is already a whole checkpoint", hint="there is nothing to merge")
    return checkpoint.adapter


def _config_changes(tensors: EffectiveTensors, checkpoint: Checkpoint) -> dict[str, Any]:
    """What becomes otherwise in config.json: a resized vocabulary, a head that is tied no more."""
    changes: dict[str, Any] = {}
    config: Any = checkpoint.config.get_text_config()
    resized = tensors.changes.replaced.get(tensors.embedding)
    if resized is not None and len(resized) != config.vocab_size:
        changes["vocab_size"] = len(resized)
    touched = {tensors.embedding, tensors.head} & tensors.changes.names
    ties = tensors.anatomy.head.weight is tensors.anatomy.embedding.weight
    if touched and ties and not tensors.tied:
        changes["tie_word_embeddings"] = False
    return changes


def _write_weights(merge: Merge, folder: Path) -> None:
    """Write a file for each of the base's; a tensor the base has not goes into the last."""
    homes: dict[Path | None, list[str]] = {}
    store = merge.tensors.store
    for name in store.names:
        homes.setdefault(store.file(name), []).append(name)
    *_, last = homes.values()
    last += [name for name in merge.names if name not in store]
    count, size = len(homes), 0
    index: dict[str, str] = {}
    for number, names in enumerate(homes.values(), start=1):
        file = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        size += write_tensors(folder / file, {name: merge.entry(name) for name in names}, merge.value)
        index |= dict.fromkeys(names, file)
    if count > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))})


def rounding_loss(merge: Merge, name: str, written: TensorReader) -> float:
    """Compare a written tensor with what it should be, entry by entry.

    Args:
        merge: what it should be.
        name: the tensor.
        written: the file or files written.

    Returns:
        ‖ΔW′ − ΔW‖ / ‖ΔW‖ (Frobenius): the share of the change that rounding took away; 0 without a low-rank change.

    Raises:
        MidblockError: an entry is off by more than half a unit of rounding.
    """
    found = written.read(name)
    grain = torch.finfo(found.dtype).eps if found.is_floating_point() else 0.0
    wrong = size = 0.0
    source = value_on_disk(merge.tensors, name)
    for rows, exact in merge.exact(name):
        error = (found[rows].double() - exact).abs()
        bound = 0.51 * grain * exact.abs() + torch.finfo(found.dtype).tiny * grain
        if not bool((error <= bound).all()):
            raise MidblockError(f"{name} reads back otherwise than it was written", hint="write to another disk")
        wrong += float(error.square().sum())
        if source.changed:
            size += float(_change(source, rows, exact).square().sum())
    return (wrong / size) ** 0.5 if size else 0.0


def _check_fits(name: str, start: Float[Tensor, "*shape"], made: Float[Tensor, "*shape"]) -> None:
    if bool(torch.isfinite(start).all()) and not bool(torch.isfinite(made).all()):
        raise MidblockError(f"{name} has entries too large for {made.dtype}", hint="--dtype bfloat16 or float32")


def _change(source: Source, rows: slice, exact: Float64[Tensor, "rows *rest"]) -> Float64[Tensor, "rows *rest"]:
    """ΔW in some rows: what the factors say, or what is there less what was."""
    if isinstance(source.delta, LowRankDelta) and source.factor is None:
        return source.delta.dense_rows(rows)
    return exact - source.stored[rows].double()


def _check(tensors: EffectiveTensors) -> None:
    """Do nothing if what the adapter replaces and changes can be replaced and changed.

    Raises:
        MidblockError: a replacement of another shape, or a change on top of a quantised tensor.
    """
    resizable = (tensors.embedding, tensors.head)
    for piece in tensors.stored_pieces:
        found, base = tensors.changes.replaced.get(piece.name), tensors.store.shape(piece.stored)
        if found is not None and not piece.region and piece.name not in resizable and tuple(found.shape) != base:
            what = f"the adapter replaces {piece.name} by {list(found.shape)}, its base has {list(base)}"
            raise MidblockError(what, hint="another base was tuned; --base names the right one")
        kind = tensors.store.dtype(piece.stored)
        if tensors.source(piece).changed and not (kind.is_floating_point and kind.itemsize > 1):
            hint = "give its full-precision original with --base"
            raise MidblockError(f"{piece.stored} is stored as {kind}, to which nothing can be added", hint=hint)
