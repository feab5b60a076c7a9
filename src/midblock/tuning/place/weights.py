"""Which of the model's own weights `method full` trains: those of the chosen blocks, and parts outside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy
from midblock.checkpoints.skeleton import like_new
from midblock.tuning.place.parts import matches_nothing, select
from midblock.tuning.settings import Placement

TIED = "tied_embedding"
_EMBEDDINGS = ("embedding", "position_embedding", TIED)


def choose_weights(model: nn.Module, plan: LayerPlan, settings: Placement) -> dict[str, str]:
    """Decide which parameters to train.

    In a chosen block, every parameter that the architecture itself does not freeze; with `target_modules` only weights
    of those roles, and their own biases. `also` adds the `embedding` (learned positions too), the `head`, the
    `final_norm`, or `norms`: every norm of the decoder. A head tied to the embedding is one parameter: either name
    trains it, under the part `tied_embedding`.

    Args:
        model: a causal language model.
        plan: blocks, parsed for this model.
        settings: `target_modules` and `also`.

    Returns:
        Name of the parameter, as `named_parameters` gives it → its part: `attention`, `mlp`, `router`, `norm`, `bias`,
        `embedding`, `position_embedding`, `tied_embedding`, `head` or `other`; in the model's order.

    Raises:
        MidblockError: the plan is for another depth or gives ranks, a role is unknown, or no block has any of them.
    """
    anatomy = Anatomy.of(model)
    if plan.total != len(anatomy):
        raise MidblockError(f"the layer plan is for {plan.total} blocks, the model has {len(anatomy)}")
    if plan.ranks is not None:
        raise MidblockError("the layer plan gives ranks, which whole weights have not", hint="such as 01100")
    parts = parameter_parts(model)
    asked = _in_blocks(anatomy, plan, settings.target_modules)
    for part in settings.also:
        asked |= _outside(part, model, parts, anatomy)
    return {name: part for name, part in parts.items() if name in asked - frozen_by_the_model(model)}


def frozen_by_the_model(model: nn.Module) -> frozenset[str]:
    """Parameters that the architecture itself never trains: biases by which a router is kept in balance, for one."""
    return frozenset(name for name, value in like_new(model).named_parameters() if not value.requires_grad)


def parameter_parts(model: nn.Module) -> dict[str, str]:
    """Name of every parameter of the model → its part, as in `choose_weights`."""
    anatomy = Anatomy.of(model)
    embedding, head = _weight(anatomy.embedding), _weight(anatomy.head)
    parts = {name: projection.part for name, projection in anatomy.projections.items()}
    tied = embedding is head
    for name, parameter in model.named_parameters():
        if parameter is embedding:
            parts[name] = TIED if tied else "embedding"
        elif parameter is head:
            parts[name] = "head"
    return parts


def train_only(model: nn.Module, names: Collection[str]) -> None:
    """Make exactly these parameters trainable and freeze all others.

    Raises:
        MidblockError: nothing is named, a name that no parameter has, or one that holds integers (a quantised weight).
    """
    parameters = dict(model.named_parameters())
    if not names:
        raise MidblockError("no weight is chosen to be trained")
    for name in names:
        if name not in parameters:
            raise MidblockError(f"the model has no parameter {name}")
        if not parameters[name].is_floating_point():
            what = f"{name} is quantised ({parameters[name].dtype}), so it cannot be trained itself"
            raise MidblockError(what, hint="--method lora, or a checkpoint that is not quantised")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)


def by_part(model: nn.Module, names: Mapping[str, str]) -> dict[str, int]:
    """Count the parameters of each part.

    Args:
        model: the model that was asked by `choose_weights`.
        names: its answer.
    """
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if name in names:
            counts[names[name]] += parameter.numel()
    return dict(counts)


def _in_blocks(anatomy: Anatomy, plan: LayerPlan, asked: str | None) -> set[str]:
    inside = [projection for projection in anatomy.projections.values() if projection.block is not None]
    if asked is None:
        return {projection.name for projection in inside if projection.layer in plan.blocks}
    chosen = [each for each in select(asked, inside) if each.layer in plan.blocks]
    if not chosen:
        raise matches_nothing(asked, inside)
    return {projection.name for projection in chosen}


def _outside(part: str, model: nn.Module, parts: Mapping[str, str], anatomy: Anatomy) -> set[str]:
    if part == "norms":
        return {name for name, own in parts.items() if own == "norm"}
    if part == "embedding":
        return {name for name, own in parts.items() if own in _EMBEDDINGS}
    module = anatomy.final_norm if part == "final_norm" else anatomy.head
    inside = {id(parameter) for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside}


def _weight(module: nn.Module) -> object:
    return getattr(module, "weight", None)
