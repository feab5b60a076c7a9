"""AdapterPlan: from a layer plan to the exact weights that get an adapter, each with its rank and alpha.

Cost: names and shapes are read, no weights. Described in docs/tuning/layers.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy, Projection
from midblock.tuning.place.budget import BlockCost, alpha_for, block_ranks
from midblock.tuning.place.parts import matches_nothing, select
from midblock.tuning.place.peft_names import rewritten_by_peft
from midblock.tuning.settings import Placement

# Mamba's fused kernels read the weight of its out_proj past any adapter, so PEFT refuses to adapt it in these families.
READ_BY_KERNELS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")


@dataclass(frozen=True)
class Target:
    """A projection that gets an adapter.

    Attributes:
        projection: the weight that it sits on.
        rank: r, for experts of each expert.
        alpha: what PEFT divides by r (or √r) to get the scale.
        dora: it also has a magnitude for each output.
        by_parameter: PEFT is told the parameter and not its module: of experts fused in 3-D, and of modules whose names
            it reads as something else.
    """

    projection: Projection
    rank: int
    alpha: float
    dora: bool = False
    by_parameter: bool = False

    @property
    def name(self) -> str:
        """As PEFT is told: the path of the module, or of the parameter."""
        return self.projection.name if self.by_parameter else self.projection.name.removesuffix(".weight")

    @property
    def block(self) -> int:
        return self.projection.layer

    @property
    def role(self) -> str:
        return self.projection.role

    @property
    def shape(self) -> tuple[int, ...]:
        return self.projection.shape

    @property
    def transposed(self) -> bool:
        return self.projection.transposed

    @property
    def parameters(self) -> int:
        """Trainable parameters: r·(m + n), times the experts; m more with DoRA."""
        return self.rank * self.projection.per_rank + self.dora * self.shape[-2]


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
        """Trainable parameters of `attention`, `mlp`, … as of a `Projection`."""
        counts: Counter[str] = Counter()
        for target in self.targets:
            counts[target.projection.part] += target.parameters
        return dict(counts)

    def scale(self, target: Target, use_rslora: bool) -> float:
        """What B A is multiplied by: alpha/r, or alpha/√r."""
        return target.alpha / (math.sqrt(target.rank) if use_rslora else target.rank)


def place_adapters(model: nn.Module, plan: LayerPlan, settings: Placement) -> AdapterPlan:
    """Decide where adapters go: every weight of a chosen block whose role is asked for.

    A chosen block that has none of them is left out: in a hybrid, blocks without attention.

    Args:
        model: a causal language model, not yet wrapped by PEFT.
        plan: blocks, parsed for this model.
        settings: target modules (left out: attention), ranks, budgets, alphas.

    Raises:
        MidblockError: the plan is for another depth, a role is unknown or fused into another weight, no chosen block
            has anything of what is asked, a budget is too small, or a rank is larger than min(m, n) of a weight.
    """
    found = find_projections(model)
    depth = len(Anatomy.of(model))
    if plan.total != depth:
        raise MidblockError(f"the layer plan is for {plan.total} blocks, the model has {depth}")
    asked = settings.target_modules or "attention"
    wanted = select(asked, found)
    plan = plan.only({projection.layer for projection in wanted})
    if not plan.blocks:
        raise matches_nothing(asked, found)
    ranks = block_ranks(plan, settings, _costs(wanted, depth, settings.use_dora))
    rank_of = dict(zip(plan.blocks, ranks, strict=True))
    chosen = [projection for projection in wanted if projection.layer in rank_of]
    _check_not_shared(chosen, model)
    odd = rewritten_by_peft(model, [projection.name.removesuffix(".weight") for projection in chosen])
    targets = tuple(_target(projection, rank_of[projection.layer], settings, odd) for projection in chosen)
    return AdapterPlan(replace(plan, ranks=ranks), targets)


def find_projections(model: nn.Module) -> tuple[Projection, ...]:
    """Every Linear, Conv1D and 3-D expert weight in the decoder blocks of `model`, bottom block first."""
    return tuple(
        projection
        for projection in Anatomy.of(model).projections.values()
        if projection.block is not None and _adaptable(projection, model)
    )


def _adaptable(projection: Projection, model: nn.Module) -> bool:
    """Whether PEFT can adapt it: the weight of a linear layer, or a stack of matrices."""
    path, _, own = projection.name.rpartition(".")
    module, config = model.get_submodule(path), getattr(model, "config", None)
    if path.endswith(".out_proj") and getattr(config, "model_type", None) in READ_BY_KERNELS:
        return False
    if isinstance(module, nn.Linear) and _of_its_own(module):
        return False
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        # transformers' Conv1D is told by name: importing its module takes seconds
        return own == "weight"
    return projection.stacked and projection.part != "bias"


def _check_not_shared(chosen: Sequence[Projection], model: nn.Module) -> None:
    """Raise MidblockError where a weight is another module's too: an adapter would change one of them, a merge both."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    for projection in chosen:
        several = names[id(model.get_parameter(projection.name))]
        if len(several) > 1:
            what = f"{several[0]} is one weight with {several[1]}, so it cannot be adapted alone"
            raise MidblockError(what, hint="other blocks or target_modules, or --method full")


def _of_its_own(module: nn.Linear) -> bool:
    """Whether a family computes with the weight in another way than a linear layer, which an adapter knows not."""
    kind = type(module)
    if not kind.__module__.startswith("transformers.models.") or kind.forward is nn.Linear.forward:
        return False
    with torch.no_grad():
        rows = module.weight.new_ones(1, module.in_features)
        try:
            return not torch.allclose(module(rows), functional.linear(rows, module.weight, module.bias))
        except (RuntimeError, TypeError):
            return True


def _costs(wanted: Sequence[Projection], depth: int, dora: bool) -> tuple[BlockCost, ...]:
    per_rank, fixed = [0] * depth, [0] * depth
    for projection in wanted:
        per_rank[projection.layer] += projection.per_rank
        fixed[projection.layer] += dora * projection.shape[-2]
    return tuple(BlockCost(*cost) for cost in zip(per_rank, fixed, strict=True))


def _target(projection: Projection, rank: int, settings: Placement, odd: Collection[str]) -> Target:
    by_parameter = projection.stacked or projection.name.removesuffix(".weight") in odd
    target = Target(projection, rank, alpha_for(rank, settings), dora=settings.use_dora, by_parameter=by_parameter)
    if rank > min(projection.shape[-2:]):
        what = f"rank {rank} is larger than {target.name} allows, which is {list(projection.shape)}"
        hint = "a lower rank, more blocks to share the budget, or target_modules without it"
        raise MidblockError(what, hint=hint)
    return target
