"""Which files of a folder hold the weights, and what to say when none do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midblock.base import MidblockError
from midblock.base.json_file import read_object, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_SINGLE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth")

# what trainers leave beside the weights
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one checkpoint.

    Attributes:
        files: paths, sorted.
        pickled: whether they are `torch.save` files rather than safetensors.
        index: tensor name to file name as the shard index has it; empty without one.
    """

    files: tuple[Path, ...]
    pickled: bool = False
    index: Mapping[str, str] = field(default_factory=dict)


def find_weight_files(place: Path, *, allow_pickle: bool = False) -> WeightFiles:
    """Find the weights at `place`: a folder, or one file.

    Order of preference, as in transformers: `model.safetensors`, the safetensors index, a lone safetensors file of
    another name; then, if allowed, the same for pickles.

    Raises:
        MidblockError: nothing there, only pickles without `allow_pickle`, a broken index, or a missing shard.
    """
    if place.is_file():
        return WeightFiles((place,), pickled=place.suffix in PICKLED_SUFFIXES)
    for single, index, suffixes in (
        (SINGLE, INDEX, (".safetensors",)),
        (PICKLED_SINGLE, PICKLED_INDEX, PICKLED_SUFFIXES),
    ):
        pickled = single == PICKLED_SINGLE
        candidates = _with_suffix(place, suffixes)
        if not candidates and not (place / index).exists():
            continue
        if pickled and not allow_pickle:
            raise _refused(candidates[0] if candidates else place / index)
        if (place / single).exists():
            return WeightFiles((place / single,), pickled)
        if (place / index).exists():
            return _from_index(place / index, pickled)
        if len(candidates) == 1:
            return WeightFiles((candidates[0],), pickled)
        what = f"{place} has {len(candidates)} files of weights and no {index} to say how they belong together"
        raise MidblockError(what, hint="fetch the index too")
    raise MidblockError(f"no weights in {place}", hint=f"{SINGLE}, or shards with {INDEX}, should be there")


def _with_suffix(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    named = (path for path in folder.iterdir() if path.suffix in suffixes and not path.name.startswith("adapter_"))
    return sorted(path for path in named if not path.name.startswith(NO_WEIGHTS))


def _from_index(index: Path, pickled: bool) -> WeightFiles:
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise MidblockError(f"{index} is corrupt: it holds no weight_map of names to files", hint="fetch it again")
    names = sorted(set(shards.values()))
    for shard in names:
        if Path(shard).name != shard:
            raise MidblockError(f"{index} names a shard outside its folder: {shown(shard)}")
        if not os.path.exists(index.parent / shard):  # False of names that no file can have, too
            what = f"shard {shown(shard)} is missing in {index.parent}"
            raise MidblockError(what, hint=f"{index.name} lists {len(names)} shards; fetch the rest")
    return WeightFiles(tuple(index.parent / shard for shard in names), pickled, shards)


def _refused(file: Path) -> MidblockError:
    hint = "a pickle can run code: convert it to safetensors, or say --allow-pickle if you trust it"
    return MidblockError(f"{file} holds pickled weights, which are not read", hint=hint)
