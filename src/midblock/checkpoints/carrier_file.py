"""carrier.safetensors: the entries and masks of a carrier, written tensor by tensor, and checked before they are used.

A parameter NAME lies there as `NAME.values` and, for each dimension of which not all is kept, `NAME.DIMENSION` (int32,
ascending); a mask as `mask.LAYER.GROUP` (uint8, 0 or 1). Reading maps the file: a parameter's values are a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from midblock.base import MidblockError, replace_atomically
from midblock.base.json_file import shown
from midblock.base.plain_file import check_plain_file
from midblock.checkpoints.carrier_config import AGAIN
from midblock.checkpoints.entries import Entries
from midblock.checkpoints.tensor_writer import write_tensors
from midblock.checkpoints.tensors import TensorReader

WEIGHTS = "carrier.safetensors"
VALUES, MASK = ".values", "mask."
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Masks = Mapping[tuple[int, str], Bool[Tensor, " n"]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class EntriesOnDisk(Mapping[str, Entries]):
    """A carrier's entries, by parameter, each read when it is asked for.

    Attributes:
        reader: of the file.
        shapes: of every parameter that has entries.
    """

    reader: TensorReader
    shapes: Shapes

    def __getitem__(self, name: str) -> Entries:
        if name not in self.shapes:
            raise KeyError(name)
        if name not in self._indices:
            listed = (f"{name}.{dim}" for dim in range(len(self.shapes[name])))
            found = tuple(self.reader.read(each).long() if each in self.reader else None for each in listed)
            self._indices[name] = found
        return Entries(self._indices[name], self.reader.read(name + VALUES))

    @cached_property
    def _indices(self) -> dict[str, tuple[Tensor | None, ...]]:
        return {}

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # without reading anything

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write_file(file: Path, entries: Mapping[str, Entries], masks: Masks) -> None:
    """Write a carrier's tensors; parameters without an entry are left out.

    Raises:
        MidblockError: the disk is full or the place cannot be written.
    """
    made = {_mask_name(*key): mask.to(torch.uint8) for key, mask in masks.items()}
    for name, each in entries.items():
        if each.count:
            made[name + VALUES] = each.values.detach().cpu()
            made |= {f"{name}.{dim}": i.to(torch.int32) for dim, i in enumerate(each.indices) if i is not None}
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in made.items()}
    with replace_atomically(file) as temporary:  # what stood there may be mapped, and read from while this is written
        write_tensors(temporary, kinds, made.__getitem__)


def read_file(file: Path, shapes: Shapes) -> tuple[EntriesOnDisk, dict[tuple[int, str], Bool[Tensor, " n"]]]:
    """Open a carrier's tensors, all of them checked.

    Args:
        shapes: of every parameter that has entries, by the carrier's config.

    Raises:
        MidblockError: a damaged file; a tensor of another name, type or shape than it must have; indices out of range,
            not ascending or repeated; values that are not finite; a mask that is not 0 or 1.
    """
    check_plain_file(file)
    with TensorReader.open(file) as reader:
        masks = {_mask_key(file, name): _mask(file, reader, name) for name in reader.names if name.startswith(MASK)}
        held = {name for name in reader.names if not name.startswith(MASK)}
        if not shapes:
            raise MidblockError(f"{file} holds no entries: nothing would be changed", hint=AGAIN)
        for name, shape in shapes.items():
            _check_entries(file, reader, name, shape)
            held -= {name + VALUES, *(f"{name}.{dim}" for dim in range(len(shape)))}
        if held:
            raise MidblockError(f"{file} holds {shown(min(held))}, which its config does not name", hint=AGAIN)
    return EntriesOnDisk(TensorReader.open(file), shapes), masks


def _check_entries(file: Path, reader: TensorReader, name: str, shape: tuple[int, ...]) -> None:
    if name + VALUES not in reader:
        raise MidblockError(f"{file} lacks {name}{VALUES}, which its config names", hint=AGAIN)
    kept = tuple(
        _checked_index(file, reader, f"{name}.{dim}", side) if f"{name}.{dim}" in reader else side
        for dim, side in enumerate(shape)
    )
    values = reader.read(name + VALUES)
    if values.dtype not in TYPES:
        raise MidblockError(f"{file}: {name}{VALUES} has the type {values.dtype}, weights are floating-point")
    if tuple(values.shape) != kept:
        what = f"{file}: {name}{VALUES} is {list(values.shape)}, its indices are for {list(kept)}"
        raise MidblockError(what, hint=AGAIN)
    if not _finite(values):
        raise MidblockError(f"{file}: {name}{VALUES} holds NaN or Inf", hint=AGAIN)


def _checked_index(file: Path, reader: TensorReader, name: str, side: int) -> int:
    """How many indices of a dimension are kept."""
    index = reader.read(name)
    if index.dtype != torch.int32 or index.ndim != 1 or not len(index):
        raise MidblockError(f"{file}: {name} is no vector of int32 indices", hint=AGAIN)
    if int(index.min()) < 0 or int(index.max()) >= side:
        what = f"{file}: {name} has the index {int(index[index.argmin() if int(index.min()) < 0 else index.argmax()])}"
        raise MidblockError(f"{what}, the dimension has {side} (0 to {side - 1})", hint=AGAIN)
    if bool((index.diff() <= 0).any()):
        repeated = bool((index.diff() == 0).any())
        raise MidblockError(f"{file}: {name} is {'repeated' if repeated else 'not ascending'} somewhere", hint=AGAIN)
    return len(index)


def _finite(values: Shaped[Tensor, "..."]) -> bool:
    # a sum is finite only if all its terms are, and is much cheaper than a test of each
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _mask_name(layer: int, group: str) -> str:
    return f"{MASK}{layer}.{group}"


def _mask_key(file: Path, name: str) -> tuple[int, str]:
    layer, _, group = name.removeprefix(MASK).partition(".")
    if not layer.removeprefix("-").isdecimal() or not group:
        raise MidblockError(f"{file}: {shown(name)} is no mask of a layer and a group", hint=AGAIN)
    return int(layer), group


def _mask(file: Path, reader: TensorReader, name: str) -> Bool[Tensor, " n"]:
    mask = reader.read(name)
    if mask.dtype != torch.uint8 or mask.ndim != 1 or bool((mask > 1).any()):
        raise MidblockError(f"{file}: {shown(name)} is no vector of 0 and 1", hint=AGAIN)
    return mask.bool()
