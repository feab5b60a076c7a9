"""Sizes in bytes before anything is loaded: what a model takes in memory, part by part, and what memory there is.

Every estimate starts here: whether a pair fits, how many blocks a cap holds, what a device can take. A model's size is
read off its skeleton in the type it would be loaded in, buffers and weights that transformers keeps in float32
included, so it is the loaded model's to the byte. Cost: a skeleton; of an adapter or carrier, opening its files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from midblock.base.files import read_size as read_size
from midblock.checkpoints.adapter import Adapter
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.checkpoint import Checkpoint
from midblock.checkpoints.effective import EffectiveTensors
from midblock.checkpoints.models import pick_device, pick_dtype
from midblock.checkpoints.quantised import dequantised
from midblock.checkpoints.settings import DTYPES, LoadSettings
from midblock.checkpoints.skeleton import anatomy_of, planned_types, skeleton_of

_WORK = 3  # copies of a weight while PEFT merges what is no low-rank change
ADAPTER_ITEM = 4  # bytes of a number while PEFT holds it: it takes factors up in float32
UNLIMITED = 2**60  # bytes: control groups write "no limit" as a number beyond any memory


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model in memory as `load_model` leaves it, by part; they add up to `total`.

    Attributes:
        blocks: of each decoder block, bottom first.
        embedding: of what lies before the blocks: token and position embeddings, a soft prompt.
        norm: of the norm behind the blocks.
        head: of the head; 0 where `tied`, its weight is the embedding's.
        other: of the rest: towers of other modalities, tables of positions.
        tied: whether head and embedding are one weight, an adapter's or a carrier's change included.
        merging: taken besides while an adapter or carriers are put in, gone afterwards; about, not to the byte.
        largest: of the largest single tensor, which loading holds twice.
    """

    blocks: tuple[int, ...]
    embedding: int
    norm: int
    head: int
    other: int
    tied: bool
    merging: int = 0
    largest: int = 0

    @property
    def total(self) -> int:
        """All of it, merging left out."""
        return sum(self.blocks) + self.embedding + self.norm + self.head + self.other

    @property
    def around(self) -> int:
        """All that is no block."""
        return self.total - sum(self.blocks)

    @property
    def loading(self) -> int:
        """The most that is held while it is loaded whole."""
        return self.total + max(self.largest, self.merging)

    @classmethod
    def of(cls, checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Footprint:
        """Measure a checkpoint; nothing is loaded.

        Args:
            dtype: that it would be loaded in; None for its own, as an accelerator takes it.

        Raises:
            MidblockError: transformers knows no model for it; an adapter or a carrier does not fit.

        Example:
            >>> Footprint.of(open_checkpoint("builtin:smollm2-135m-instruct"), torch.float32).total
            538060416
        """
        kind = dtype or own_dtype(checkpoint)
        skeleton = skeleton_of(checkpoint.config, trust_remote_code=checkpoint.trust_remote_code, dtype=kind)
        anatomy = anatomy_of(skeleton)
        sizes, places = _sizes(skeleton, kind), _places(skeleton, anatomy)
        tied = anatomy.head.weight is anatomy.embedding.weight
        merging = 0
        adapter = checkpoint.adapter
        if adapter is not None and adapter.settings.inexpressible:
            merging = _held_by_peft(adapter) + max(sizes.values()) * _WORK
        elif adapter is not None or checkpoint.carriers:
            with EffectiveTensors.of_checkpoint(checkpoint) as tensors:
                sizes |= _replaced(tensors, kind)
                if tied and not tensors.tied:
                    tied, sizes[tensors.head] = False, sizes[tensors.embedding]
                merging = _merging(checkpoint, tensors, sizes, kind)
            places.setdefault(tensors.head, "head")
        parts: dict[str | int, int] = {}
        for name, size in sizes.items():
            parts[places[name]] = parts.get(places[name], 0) + size
        prompt = checkpoint.prompt.values.nbytes if checkpoint.prompt is not None else 0
        return cls(
            blocks=tuple(parts.get(block, 0) for block in range(len(anatomy))),
            embedding=parts.get("embedding", 0) + prompt,
            norm=parts.get("norm", 0),
            head=parts.get("head", 0),
            other=parts.get("other", 0),
            tied=tied,
            merging=merging,
            largest=max(sizes.values()),
        )


def own_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type that a checkpoint is loaded in where none is asked for: its config's, else that of its files.

    Codes of quantised weights are loaded as what they stand for; a type that no model runs in gives way to float32.
    """
    config: Any = checkpoint.config
    with dequantised(checkpoint.tensors(), config) as store:
        if coded := getattr(store, "coded", None):
            return store.dtype(next(iter(coded)))
        kinds = (store.dtype(name) for name in store.names)
        stated = getattr(config, "dtype", None) or next((kind for kind in kinds if kind.is_floating_point), None)
    name = str(stated).removeprefix("torch.")
    return getattr(torch, name) if name in DTYPES else torch.float32


def dtype_in_memory(checkpoint: Checkpoint, settings: LoadSettings) -> torch.dtype:
    """The type that `load_model` would give a checkpoint's weights.

    Raises:
        MidblockError: the device is not there.
    """
    kind = pick_dtype(settings.dtype, pick_device(settings.device))
    return kind if isinstance(kind, torch.dtype) else own_dtype(checkpoint)


def available_memory(device: torch.device | str = "cpu", *, system: Path = Path("/")) -> int:
    """Bytes that can still be taken on a device.

    On the CPU what the system says is available, or what a control group (a container, a job of a cluster) leaves of
    its limit, whichever is less; on an accelerator what is free, and what torch holds there without using it.

    Args:
        system: where `proc` and `sys` lie.
    """
    place = torch.device(device)
    if place.type == "cpu":
        return min([psutil.virtual_memory().available, *_left_by_groups(system)])
    if place.type == "mps":
        left = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return min(left, available_memory("cpu", system=system))
    free, _ = torch.accelerator.get_memory_info(place)
    return int(free + torch.accelerator.memory_reserved(place) - torch.accelerator.memory_allocated(place))


def _sizes(skeleton: nn.Module, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each parameter and buffer, in the type that transformers keeps it in; tied ones once."""
    saved = {name for name, value in skeleton.state_dict().items() if value.is_floating_point()}
    kept = planned_types(skeleton, saved, dtype)
    return {name: value.numel() * kept.get(name, value.dtype).itemsize for name, value in _tensors(skeleton)}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _places(skeleton: nn.Module, anatomy: Anatomy) -> dict[str, str | int]:
    """The part that each parameter and buffer belongs to; a block by its number."""
    found: dict[str, str | int] = {}
    for name, value in _tensors(skeleton):
        where = anatomy.projection_of(name, tuple(value.shape))
        if where.block is not None:
            found[name] = where.block
        elif where.layer == -1:
            found[name] = "embedding"
        else:
            parts = (("norm", "final_norm"), ("head", "head"))
            held = (part for part, key in parts if name.startswith(f"{anatomy.names[key]}."))
            found[name] = next(held, "other")
    return found


def _replaced(tensors: EffectiveTensors, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of what an adapter brings whole: of another size where it resized the vocabulary."""
    return {name: value.numel() * dtype.itemsize for name, value in tensors.changes.replaced.items()}


def _merging(checkpoint: Checkpoint, tensors: EffectiveTensors, sizes: Mapping[str, int], dtype: torch.dtype) -> int:
    """What putting an adapter or carriers in takes besides the model: what is put in, and work on the largest weight.

    PEFT merges into a copy of a weight with a change in float32; a carrier is written into the weight itself, several
    into a copy in float64.
    """
    changed = [sizes[name] // dtype.itemsize for name in tensors.changes.names if name in sizes]
    largest = max(changed, default=0)
    if checkpoint.adapter is not None:
        return _held_by_peft(checkpoint.adapter) + largest * (2 * dtype.itemsize + 4)
    return sum(each.nbytes for each in checkpoint.carriers) + (largest * 8 if len(checkpoint.carriers) > 1 else 0)


def _held_by_peft(adapter: Adapter) -> int:
    """Bytes of an adapter's tensors, which PEFT reads twice over."""
    with adapter.tensors() as own:
        return 2 * ADAPTER_ITEM * sum(own.nbytes(name) // own.dtype(name).itemsize for name in own.names)


def _left_by_groups(system: Path) -> list[int]:
    """Bytes that each control group around this process leaves of its limit, of both versions; none where none has."""
    mine = system / "proc" / "self" / "cgroup"
    found = []
    for line in mine.read_text().splitlines() if mine.exists() else ():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        first = system / "sys" / "fs" / "cgroup" / ("memory" if kinds else "")
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        parts = [part for part in path.split("/") if part]
        # inside a container the path may be the host's: then its files lie at the top
        for folder in (first.joinpath(*parts[:end]) for end in range(len(parts), -1, -1)):
            left = _left(folder / limit, folder / used, folder / "memory.stat")
            found += [] if left is None else [left]
    return found


def _left(limit: Path, used: Path, stat: Path) -> int | None:
    """What a control group's limit leaves; None without one. Pages of files that nobody works with can be taken."""
    if not (limit.exists() and used.exists()):
        return None
    most = limit.read_text().strip()
    if not most.isdigit() or int(most) >= UNLIMITED:
        return None
    lines = stat.read_text().splitlines() if stat.exists() else []
    idle = {line.split()[0]: int(line.split()[1]) for line in lines if "inactive_file" in line}
    return max(0, int(most) - int(used.read_text()) + idle.get("total_inactive_file", idle.get("inactive_file", 0)))
