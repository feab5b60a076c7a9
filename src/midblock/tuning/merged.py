"""Base plus adapter as one checkpoint, tensor by tensor: no model is built, memory holds a few tensors.

Each file of the base becomes one file. What the adapter does not touch is written as it was, bit for bit; what it
touches is computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from midblock.base import MidblockError, write_json
from midblock.checkpoints import Checkpoint, LowRankDelta, TensorReader, place
from midblock.checkpoints.adapter import Adapter
from midblock.checkpoints.checkpoint_files import copy_small_files, copy_tokenizer_of_adapter, write_config
from midblock.checkpoints.tensor_writer import write_tensors
from midblock.checkpoints.weight_files import INDEX, SINGLE

HEAD = "lm_head.weight"
CHUNK = 2**24  # entries computed at a time, in float64


@dataclass(frozen=True)
class Merge:
    """What every tensor of the merged checkpoint is made of.

    Attributes:
        base: the base's tensors.
        deltas: low-rank changes, by the name of the tensor they are added to.
        replaced: tensors that stand in for the base's.
        read_from: the base's tensor a name starts from, where that has another name: an untied head.
        dtype: of every floating-point tensor written; None for each one's own.
    """

    base: TensorReader
    deltas: Mapping[str, LowRankDelta]
    replaced: Mapping[str, Shaped[Tensor, "*shape"]]
    read_from: Mapping[str, str]
    dtype: torch.dtype | None

    @property
    def touched(self) -> frozenset[str]:
        """Names of the tensors that the adapter changes or adds."""
        return frozenset({*self.deltas, *self.replaced, *self.read_from})

    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape that a tensor is written in."""
        origin = self.read_from.get(name, name)
        own = self.base.dtype(origin) if origin in self.base else self.replaced[name].dtype
        shape = tuple(self.replaced[name].shape) if name in self.replaced else self.base.shape(origin)
        return (self.dtype if self.dtype and own.is_floating_point else own), shape

    def value(self, name: str) -> Shaped[Tensor, "*shape"]:
        """The tensor to write.

        Raises:
            MidblockError: it does not fit into the type.
        """
        start, (dtype, shape) = self._start(name), self.entry(name)
        if name not in self.deltas:
            made = start.to(dtype)
        else:
            made = torch.empty(shape, dtype=dtype)
            for rows, exact in self.exact(name):
                made[rows] = exact.to(dtype)
        if start.dtype != dtype or name in self.deltas:
            _check_fits(name, start, made)
        return made

    def exact(self, name: str) -> Iterator[tuple[slice, Float64[Tensor, "rows *rest"]]]:
        """What a touched tensor should be, some rows at a time."""
        start, delta = self._start(name), self.deltas.get(name)
        if start.ndim == 0:
            return
        step = max(1, CHUNK // max(1, start[0].numel()))
        for first in range(0, start.shape[0], step):
            rows = slice(first, first + step)
            exact = start[rows].double()
            if delta is not None:
                exact = exact + LowRankDelta(delta.B[rows], delta.A, delta.scale).dense()
            yield rows, exact

    def _start(self, name: str) -> Shaped[Tensor, "*shape"]:
        return self.replaced[name] if name in self.replaced else self.base.read(self.read_from.get(name, name))


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
    with checkpoint.tensors() as base:
        merge, changes = _plan(checkpoint, adapter, base, dtype)
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


def _plan(
    checkpoint: Checkpoint, adapter: Adapter, base: TensorReader, dtype: torch.dtype | None
) -> tuple[Merge, dict[str, Any]]:
    """What to write, and what changes in config.json."""
    deltas, replaced = dict(adapter.deltas(base)), dict(adapter.replaced(base))
    config: Any = checkpoint.config.get_text_config()
    names = _outside(base, config.num_hidden_layers)
    embedding, head = names.get("embedding"), names.get("head", HEAD)
    read_from = {head: embedding} if head in deltas and head not in base and embedding else {}
    changes: dict[str, Any] = {}
    if embedding and embedding in replaced and replaced[embedding].shape != base.shape(embedding):
        changes["vocab_size"] = replaced[embedding].shape[0]
    if embedding and getattr(config, "tie_word_embeddings", False) and {embedding, head} & {*deltas, *replaced}:
        if head not in base:
            read_from[head] = embedding
        merge = Merge(base, deltas, replaced, read_from, dtype)
        resized_alone = "vocab_size" in changes and head not in replaced  # the head of PEFT's model then follows
        if not resized_alone and not torch.equal(merge.value(embedding), merge.value(head)):
            changes["tie_word_embeddings"] = False
        elif head not in base:
            for mapping in (deltas, replaced, read_from):
                mapping.pop(head, None)
    _check_shapes(replaced, base, {embedding, head})
    _check_plain(deltas, base)
    return Merge(base, deltas, replaced, read_from, dtype), changes


def _outside(base: TensorReader, blocks: int) -> dict[str, str]:
    """The names of the input embedding and of the head, as far as the file has them."""
    found = {}
    for name in base.names:
        module = place(name, blocks).module
        if module in ("embedding", "head") and name.endswith(".weight"):
            found[module] = name
    return found


def _write_weights(merge: Merge, folder: Path) -> None:
    """Write a file for each of the base's; a tensor the base has not goes into the last."""
    homes: dict[Path, list[str]] = {}
    for name in merge.base.names:
        homes.setdefault(merge.base.file(name), []).append(name)
    *_, last = homes.values()
    last += sorted(merge.touched - set(merge.base.names))
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
    for rows, exact in merge.exact(name):
        error = (found[rows].double() - exact).abs()
        bound = 0.51 * grain * exact.abs() + torch.finfo(found.dtype).tiny * grain
        if not bool((error <= bound).all()):
            raise MidblockError(f"{name} reads back otherwise than it was written", hint="write to another disk")
        wrong += float(error.square().sum())
        if name in merge.deltas:
            delta = merge.deltas[name]
            size += float(LowRankDelta(delta.B[rows], delta.A, delta.scale).dense().square().sum())
    return (wrong / size) ** 0.5 if size else 0.0


def _check_fits(name: str, start: Float[Tensor, "*shape"], made: Float[Tensor, "*shape"]) -> None:
    if bool(torch.isfinite(start).all()) and not bool(torch.isfinite(made).all()):
        raise MidblockError(f"{name} has entries too large for {made.dtype}", hint="--dtype bfloat16 or float32")


def _check_shapes(replaced: Mapping[str, Tensor], base: TensorReader, resizable: set[str | None]) -> None:
    for name, tensor in replaced.items():
        if name in base and name not in resizable and tuple(tensor.shape) != base.shape(name):
            what = f"the adapter replaces {name} by {list(tensor.shape)}, its base has {list(base.shape(name))}"
            raise MidblockError(what, hint="another base was tuned; --base names the right one")


def _check_plain(deltas: Mapping[str, LowRankDelta], base: TensorReader) -> None:
    for name in deltas:
        if name in base and not (base.dtype(name).is_floating_point and base.dtype(name).itemsize > 1):
            hint = "give its full-precision original with --base"
            raise MidblockError(f"{name} is stored as {base.dtype(name)}, to which nothing can be added", hint=hint)
