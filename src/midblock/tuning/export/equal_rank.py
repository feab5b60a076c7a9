"""A mixed-rank adapter as one of a single rank and scale, for servers that read no patterns.

vLLM multiplies a whole adapter by lora_alpha/r, and llama.cpp divides by each tensor's own rank: both would scale
mixed ranks wrongly. Padding A with zero rows and B with zero columns changes no product, so that every module can have
the largest rank; where its scale was another than the common one, the ratio goes into B.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from midblock.base import MidblockError, write_json
from midblock.checkpoints import LowRankDelta, TensorReader
from midblock.checkpoints.adapter import CONFIG, WEIGHTS
from midblock.checkpoints.adapter_names import PREFIX, unwrapped
from midblock.checkpoints.lora_config import NOT_LOW_RANK
from midblock.checkpoints.tensor_writer import write_tensors
from midblock.tuning.export.adapter_source import AdapterSource, FactorNames

SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes
STACKED = "target_parameters"
TOLERANCE = 1e-6  # relative, of a change; B is rounded once, to float32


@dataclass(frozen=True)
class _Module:
    """One adapted module; `experts` is 1 but for stacked experts, whose A is (e r) × n and whose B is m × (r e)."""

    factors: FactorNames
    rank: int
    experts: int
    scale: float

    def padded_a(self, A: Float[Tensor, "er n"], rank: int) -> Float[Tensor, "es n"]:
        stacked = A.reshape(self.experts, self.rank, -1)
        return torch.nn.functional.pad(stacked, (0, 0, 0, rank - self.rank)).reshape(self.experts * rank, -1)

    def padded_b(self, B: Float[Tensor, "m re"], rank: int) -> Float[Tensor, "m se"]:
        stacked = B.reshape(-1, self.rank, self.experts)
        return torch.nn.functional.pad(stacked, (0, 0, 0, rank - self.rank)).reshape(-1, rank * self.experts)


def write_equal_rank(source: AdapterSource, folder: Path) -> tuple[float, list[str]]:
    """Write the adapter with one rank and one scale, and compare what was written with what was read.

    The rank is the largest one, raised to the next that vLLM's `--max-lora-rank` takes. The scale is the commonest one
    for which lora_alpha is whole, so that most B stay as they are, bit for bit; else 1.

    Args:
        source: the adapter; its base is not needed.
        folder: an existing, empty folder.

    Returns:
        The largest error of a module's change, relative to that change (Frobenius norms), and what to know about it.

    Raises:
        MidblockError: the adapter is more than products of two factors (DoRA, …), or the file read back differs.
    """
    _check_expressible(source)
    with source.tensors() as own:
        _check_named(own, source.folder)
        modules = list(_modules(source, own))
        rank = served_rank([module.rank for module in modules])
        alpha = common_alpha([module.scale for module in modules], rank)
        made = _made(modules, own, rank, alpha / rank)
        entries = {name: (made.get(name, own.read(name)).dtype, _shape(made, own, name)) for name in own.names}
        write_tensors(folder / WEIGHTS, entries, lambda name: made[name] if name in made else own.read(name))
        write_json(folder / CONFIG, equal_config(source.config, rank, alpha))
        with TensorReader.open(folder / WEIGHTS) as written:
            worst = max(_error(module, own, written, rank, alpha / rank) for module in modules)
    if not worst <= TOLERANCE:
        what = f"the adapter read back differs from what was to be written, by {worst:.1e} of a change"
        raise MidblockError(what, hint="write to another disk")
    return worst, _notes(source, modules, rank)


def served_rank(ranks: Sequence[int]) -> int:
    """The least rank of `SERVED_RANKS` that holds them all; the largest itself where none does."""
    return next((rank for rank in SERVED_RANKS if rank >= max(ranks)), max(ranks))


def common_alpha(scales: Sequence[float], rank: int) -> int:
    """The whole alpha for which alpha/rank is exactly the commonest scale that allows it; `rank` if none does."""
    for scale, _ in Counter(scales).most_common():
        alpha = round(scale * rank)
        if alpha and alpha / rank == scale:
            return alpha
    return rank


def equal_config(config: Mapping[str, Any], rank: int, alpha: int) -> dict[str, Any]:
    """The adapter's config with one rank and alpha, no patterns and the plain scale alpha/r."""
    one = {"r": rank, "lora_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    return {**config, **one}


def _check_expressible(source: AdapterSource) -> None:
    others = [title for name, title in NOT_LOW_RANK.items() if name != STACKED and source.config.get(name)]
    reason = source.settings.inexpressible
    if reason is not None and reason != NOT_LOW_RANK[STACKED]:
        others.insert(0, reason)
    if others:
        what = f"{source.folder}: {others[0]} cannot be given one rank and scale"
        raise MidblockError(what, hint="--to merged takes it")


def _check_named(own: TensorReader, folder: Path) -> None:
    """Do nothing if the tensors are called as PEFT calls them; programs that serve adapters find them by that."""
    if strange := next((name for name in own.names if not name.startswith(PREFIX) or name != unwrapped(name)), None):
        what = f"{folder}: the tensor {strange} is not called as PEFT would call it, so that servers pass over it"
        raise MidblockError(what, hint="--to merged takes it")


def _modules(source: AdapterSource, own: TensorReader) -> Iterator[_Module]:
    stacked = tuple(name.rpartition(".")[0] for name in source.config.get(STACKED) or ())
    found = list(source.factors(own))
    source.settings.check_patterns((factors.module for factors in found), source.folder)
    for factors in found:
        rows = own.shape(factors.a)[0]
        rank = _stacked_rank(source, factors.module) if factors.module.endswith(stacked) and stacked else rows
        yield _Module(factors, rank, rows // rank, source.settings.scale(factors.module, rank))


def _stacked_rank(source: AdapterSource, module: str) -> int:
    """The config's own rank: the file does not tell which of a module's parameters a pattern would be about."""
    names = [module, *(name for name in source.config[STACKED] if name.rpartition(".")[0] in module)]
    for key in (*source.settings.rank_pattern, *source.settings.alpha_pattern):
        if any(re.match(rf"(.*\.)?({key})$", name) for name in names):
            raise MidblockError(f"{source.folder}: the pattern {key!r} is about stacked parameters, which is not read")
    return source.settings.r


def _made(modules: Sequence[_Module], own: TensorReader, rank: int, scale: float) -> dict[str, Tensor]:
    made = {}
    for module in modules:
        made[module.factors.a] = module.padded_a(own.read(module.factors.a), rank)
        B = own.read(module.factors.b)
        made[module.factors.b] = module.padded_b(_scaled(B, module.scale / scale), rank)
    return made


def _scaled(B: Float[Tensor, "m r"], ratio: float) -> Float[Tensor, "m r"]:
    """B times `ratio`: in its own type where that is exact, else at least in float32."""
    if ratio == 1:
        return B
    exact = B.double() * ratio
    own = exact.to(B.dtype)
    return own if torch.equal(own.double(), exact) else exact.to(torch.promote_types(B.dtype, torch.float32))


def _shape(made: Mapping[str, Tensor], own: TensorReader, name: str) -> tuple[int, ...]:
    return tuple(made[name].shape) if name in made else own.shape(name)


def _error(module: _Module, own: TensorReader, written: TensorReader, rank: int, scale: float) -> float:
    """‖ΔW′ − ΔW‖ / ‖ΔW‖ over all experts, from thin factorisations; 0 where nothing changed and nothing does."""
    a, b, experts = module.factors.a, module.factors.b, module.experts
    A, B = own.read(a).double(), own.read(b).double()
    A = A.reshape(experts, module.rank, -1)
    B = B.reshape(-1, module.rank, experts)
    padded_a = written.read(a).double().reshape(experts, rank, -1)
    padded_b = written.read(b).double().reshape(-1, rank, experts)
    wrong = size = 0.0
    for e in range(experts):
        left = torch.cat([scale * padded_b[..., e], -module.scale * B[..., e]], dim=1)
        difference = LowRankDelta(left, torch.cat([padded_a[e], A[e]]), 1.0).singular_values()
        wrong += float(difference.square().sum())
        size += float(LowRankDelta(B[..., e], A[e], module.scale).singular_values().square().sum())
    return (wrong / size) ** 0.5 if size else float(wrong > 0)


def _notes(source: AdapterSource, modules: Sequence[_Module], rank: int) -> list[str]:
    ranks = sorted({module.rank for module in modules})
    done = f"rank {rank} everywhere" if ranks == [rank] else f"ranks {', '.join(map(str, ranks))} padded to {rank}"
    notes = [f"{done}; vLLM: --max-lora-rank {rank}"]
    if rank not in SERVED_RANKS:
        notes.append(f"vLLM takes ranks up to {SERVED_RANKS[-1]} only")
    if source.settings.modules_to_save or source.config.get("bias", "none") != "none":
        notes.append("it also replaces whole tensors (modules_to_save, biases), which vLLM refuses")
    return notes
