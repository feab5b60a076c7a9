"""AdapterPlan: from a layer plan to the exact weights that get an adapter, each with its rank and alpha."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from torch.nn.modules.conv import _ConvNd

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy, place
from midblock.tuning.budget import BlockCost, alpha_for, block_ranks
from midblock.tuning.parts import part_of, select_roles
from midblock.tuning.settings import Placement


@dataclass(frozen=True)
class Projection:
    """A weight in a decoder block that an adapter can sit on.

    Attributes:
        name: exact path in the causal language model: of the module, or for experts fused in 3-D of the parameter.
        block: 0…L-1.
        role: `Place.module`.
        kind: `linear` or `experts`.
        shape: (out, in), for experts (experts, out, in), however it is stored.
        transposed: stored as (in, out): GPT-2's Conv1D, and experts that say so.
    """

    name: str
    block: int
    role: str
    kind: str
    shape: tuple[int, ...]
    transposed: bool = field(default=False, kw_only=True)

    @property
    def per_rank(self) -> int:
        """Parameters of A and B together for each unit of rank: m + n, for every expert."""
        return math.prod(self.shape[:-2]) * sum(self.shape[-2:])


@dataclass(frozen=True)
class Target(Projection):
    """A projection that gets an adapter.

    Attributes:
        rank: r, for experts of each expert.
        alpha: what PEFT divides by r (or √r) to get the scale.
        dora: it also has a magnitude for each output.
    """

    rank: int
    alpha: float
    dora: bool = field(default=False, kw_only=True)

    @property
    def parameters(self) -> int:
        """Trainable parameters: r·(m + n), times the experts; m more with DoRA."""
        return self.rank * self.per_rank + self.dora * self.shape[-2]


@dataclass(frozen=True)
class AdapterPlan:
    """All adapters of a run.

    Attributes:
        plan: the chosen blocks, with the rank decided for each.
        targets: bottom block first, in the order in which the model names them.
    """

    plan: LayerPlan
    targets: tuple[Target, ...]

    @property
    def parameters(self) -> int:
        """Trainable parameters in all."""
        return sum(target.parameters for target in self.targets)

    def by_part(self) -> dict[str, int]:
        """Trainable parameters of `attention`, `mlp`, … (see `part_of`)."""
        counts: Counter[str] = Counter()
        for target in self.targets:
            counts[part_of(target.role)] += target.parameters
        return dict(counts)

    def scale(self, target: Target, use_rslora: bool) -> float:
        """What B A is multiplied by: alpha/r, or alpha/√r."""
        return target.alpha / (math.sqrt(target.rank) if use_rslora else target.rank)


def place_adapters(model: nn.Module, plan: LayerPlan, settings: Placement) -> AdapterPlan:
    """Decide where adapters go: every weight of a chosen block whose role is asked for.

    Args:
        model: a causal language model, not yet wrapped by PEFT.
        plan: blocks, parsed for this model.
        settings: target modules (left out: attention), ranks, budgets, alphas.

    Raises:
        MidblockError: the plan is for another depth, a role is unknown or fused into another weight, a chosen block has
            nothing of what is asked, a budget is too small, or a rank is larger than min(m, n) of a weight.
    """
    found = find_projections(model)
    depth = len(Anatomy.of(model))
    if plan.total != depth:
        raise MidblockError(f"the layer plan is for {plan.total} blocks, the model has {depth}")
    asked = settings.target_modules or "attention"
    roles = select_roles(asked, {projection.role for projection in found})
    wanted = [projection for projection in found if projection.role in roles]
    _check_every_block(wanted, plan, asked)
    ranks = block_ranks(plan, settings, _costs(wanted, depth, settings.use_dora))
    rank_of = dict(zip(plan.blocks, ranks, strict=True))
    targets = tuple(
        _target(projection, rank_of[projection.block], settings) for projection in wanted if projection.block in rank_of
    )
    return AdapterPlan(replace(plan, ranks=ranks), targets)


def find_projections(model: nn.Module) -> tuple[Projection, ...]:
    """Every Linear, Conv1D and 3-D expert weight in the decoder blocks of `model`, bottom block first."""
    anatomy = Anatomy.of(model)
    path = anatomy.names["blocks"]
    return tuple(
        found
        for block, module in enumerate(anatomy.blocks)
        for name, child in module.named_modules(prefix=f"{path}.{block}")
        for found in _projections_of(name, child, block, len(anatomy))
    )


def _projections_of(name: str, module: nn.Module, block: int, depth: int) -> Iterator[Projection]:
    role = place(f"{name}.weight", depth).module
    # a layer says its shape itself: packed 4-bit weights and sharded ones would not
    if isinstance(module, nn.Linear):
        yield Projection(name, block, role, "linear", (module.out_features, module.in_features))
    elif type(module).__name__ == "Conv1D":  # transformers', told by name: importing its module takes seconds
        yield Projection(name, block, role, "linear", (int(module.nf), int(module.nx)), transposed=True)  # type: ignore[arg-type]
    elif not isinstance(module, _ConvNd):
        yield from _experts_of(name, module, block, depth)


def _experts_of(name: str, module: nn.Module, block: int, depth: int) -> Iterator[Projection]:
    turned = bool(getattr(module, "is_transposed", False))
    for own, parameter in module.named_parameters(recurse=False):
        if parameter.ndim == 3:
            experts, rows, columns = parameter.shape
            shape = (experts, columns, rows) if turned else (experts, rows, columns)
            path = f"{name}.{own}"
            role = place(path, depth).module
            if part_of(role) != "bias":
                yield Projection(path, block, role, "experts", shape, transposed=turned)


def _check_every_block(wanted: Sequence[Projection], plan: LayerPlan, asked: str) -> None:
    empty = sorted(set(plan.blocks) - {projection.block for projection in wanted})
    if empty:
        names = LayerPlan(plan.total, tuple(empty))
        hint = "leave those blocks out of the plan, or ask for other target_modules"
        raise MidblockError(f"target_modules {asked!r} matches nothing in the blocks {names}", hint=hint)


def _costs(wanted: Sequence[Projection], depth: int, dora: bool) -> tuple[BlockCost, ...]:
    per_rank, fixed = [0] * depth, [0] * depth
    for projection in wanted:
        per_rank[projection.block] += projection.per_rank
        fixed[projection.block] += dora * projection.shape[-2]
    return tuple(BlockCost(*cost) for cost in zip(per_rank, fixed, strict=True))


def _target(projection: Projection, rank: int, settings: Placement) -> Target:
    if rank > min(projection.shape[-2:]):
        what = f"rank {rank} is larger than {projection.name} allows, which is {list(projection.shape)}"
        hint = "a lower rank, more blocks to share the budget, or target_modules without it"
        raise MidblockError(what, hint=hint)
    return Target(
        projection.name,
        projection.block,
        projection.role,
        projection.kind,
        projection.shape,
        rank,
        alpha_for(rank, settings),
        transposed=projection.transposed,
        dora=settings.use_dora,
    )
