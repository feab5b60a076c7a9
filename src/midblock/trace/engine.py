"""Which engine walks a pair, whole models or block by block, and how much it may hold in memory.

Block by block where a cap is asked for, and by itself where the models do not fit into the memory that is there. What
it needs at the least is reckoned before anything is read: the largest part and the one that is read meanwhile, the
heads of all models together, and room to compute in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from midblock.base import MidblockError
from midblock.base.files import read_size, size_text
from midblock.checkpoints import Pair
from midblock.checkpoints.blockwise import BlockwiseModel, Part
from midblock.checkpoints.footprint import Footprint, available_memory, dtype_in_memory
from midblock.checkpoints.models import pick_device

WHOLE, BLOCKS = "whole models", "block by block"
HEADS: tuple[Part, ...] = ("around", "final_norm", "head")
ROOM = 96 * 2**20  # bytes for what is not counted
LEAST_KEPT = 16 * 2**20  # bytes of states that are held before they go to disk


@dataclass(frozen=True)
class Engine:
    """How a pair is walked.

    Attributes:
        kind: `WHOLE` or `BLOCKS`.
        why: in words, for a note; "" where nothing is to be said.
        cap: bytes that may be taken in all, block by block.
        limit: bytes of states and rows that are held before they go to disk.
    """

    kind: str = WHOLE
    why: str = ""
    cap: int = 0
    limit: int = 0

    @property
    def notes(self) -> list[str]:
        """What a reader must know."""
        return [f"The models were walked block by block: {self.why}."] if self.why else []

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        return {"engine": {"kind": self.kind, "why": self.why, "max_memory": self.cap}} if self.why else {}


@contextmanager
def engine_of(pair: Pair) -> Iterator[None]:
    """Close what `choose_engine` opens when a run is over."""
    try:
        yield
    finally:
        pair.close_parts()


def choose_engine(pair: Pair, *, tokens: int, rounded: bool = False, together: bool = False, copies: int = 1) -> Engine:
    """Choose, and open models in parts where they are walked block by block.

    Args:
        tokens: of a batch, at most.
        rounded: the base is run in its other precision too.
        together: blocks of all models are in memory at once.
        copies: processes on this machine that hold the pair, each for itself.

    Raises:
        MidblockError: a cap that cannot be kept, with the least that would do.
    """
    cap, why = _cap(pair, copies)
    if cap is None:
        return Engine()
    least = least_by_blocks(pair, tokens=tokens, rounded=rounded, together=together)
    if cap < least:
        other = ", or --no-precision-floor" if rounded else ""
        what = f"block by block these models need {size_text(least)}, and {size_text(cap)} may be taken"
        raise MidblockError(what, hint=f"--max-memory {least // 10**6 + 1}MB, a smaller --batch-tokens{other}")
    return Engine(BLOCKS, why, cap, (cap - least) // 2 + LEAST_KEPT)  # a piece is written from a copy


def least_by_blocks(pair: Pair, *, tokens: int, rounded: bool = False, together: bool = False) -> int:
    """Bytes that this process takes at the least when it walks a pair block by block; opens the models in parts.

    Args:
        tokens, rounded, together: as of `choose_engine`.

    Raises:
        MidblockError: a model that cannot be walked block by block.
    """
    pair.open_parts()
    needed = _needed(pair, tokens, rounded=rounded, together=together)
    return psutil.Process().memory_info().rss + needed + ROOM + 2 * LEAST_KEPT


def _cap(pair: Pair, copies: int) -> tuple[int | None, str]:
    """Bytes that this process may take block by block, and why it is so; None for whole models."""
    asked = pair.base.loading.max_memory
    if asked is not None:
        return read_size(asked), f"--max-memory {asked}"
    if pair.base.loading.device_map is not None or any(each.checkpoint is None or each.loaded for each in pair):
        return None, ""
    device = pick_device(pair.base.loading.device)
    there = available_memory(device) // (copies if device.type == "cpu" else 1)  # a device is a process's own
    needed = sum(_loading(each.checkpoint, each.loading) for each in pair)
    if needed <= there:
        return None, ""
    here = psutil.Process().memory_info().rss
    each = f" for each of {copies} processes" if copies > 1 else ""
    why = f"whole they take {size_text(needed)}, and {size_text(there)} are free{each}"
    return available_memory("cpu") // copies + here, why


def _loading(checkpoint: Any, loading: Any) -> int:
    return Footprint.of(checkpoint, dtype_in_memory(checkpoint, loading)).loading


def _needed(pair: Pair, tokens: int, *, rounded: bool, together: bool) -> int:
    """Bytes that the largest stage takes besides what is kept."""
    models = pair.in_parts
    parts = [_largest(model, rounded=rounded and name == pair.base.name) for name, model in models.items()]
    heads = sum(model.bytes_of(part) for model in models.values() for part in HEADS)
    config = pair.base.config
    width, inner = int(config.hidden_size), int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    item = max(model.kinds[next(iter(model.kinds))].itemsize for model in models.values())
    computing = tokens * ((8 * width + 3 * inner) * max(item, 4 if rounded else 0) + 24 * width)
    reading = pair.vocabulary * (len(models) + 1) * 24 * 8
    routers = sum(_routers(model) for name, model in models.items() if name != pair.base.name)
    return max((sum(parts) if together else max(parts)) + routers + computing, heads + reading)


def _routers(model: BlockwiseModel) -> int:
    """Bytes of what chooses experts, which is asked while another model's blocks are read."""
    found = [each.name for each in model.anatomy.projections.values() if each.role == "router"]
    return sum(model.numbers_of(name) * model.kinds[name].itemsize for name in found)


def _largest(model: BlockwiseModel, *, rounded: bool) -> int:
    """Bytes of the largest stage of a walk through a model: what it holds, and what is read meanwhile."""
    last = len(model.anatomy) - 1
    stages: list[tuple[tuple[Part, ...], tuple[Part, ...]]] = [(("embedding", "around", "final_norm"), (0,))]
    stages += [((block,), (block + 1,) if block < last else ("final_norm",)) for block in range(last + 1)]
    found = []
    for held, ahead in stages:
        there = sum(map(model.bytes_of, held))
        other = _in_other_precision(model, held) if rounded else 0
        found.append(there + other + sum(map(model.bytes_of, ahead)))
    return max(found)


def _in_other_precision(model: BlockwiseModel, parts: tuple[Part, ...]) -> int:
    names = [name for part in parts for name in model.names_of(part)]
    return sum(model.numbers_of(name) * (2 if model.kinds[name].itemsize == 4 else 4) for name in names)
