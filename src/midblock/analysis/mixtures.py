"""The mixtures of experts of a pair, found and checked before the long pass; what cannot be read is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from midblock.analysis.prompts import Prompts
from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Pair
from midblock.evaluation import CHECKED
from midblock.trace import run_backbone
from midblock.trace.routing import Call, Mixtures, find_mixtures, watch_choices, with_experts

CHOICES, LOADS = "routers", "loads"  # kinds of rows, and the sources of metrics that they are for
EXPERTS = frozenset({CHOICES, LOADS})
OF_EXPERT = "expert:"
NOT_BY_BLOCKS = (
    "No expert load and no router change: they are read of whole models, and these are walked block by block."
)


def has_experts(pair: Pair) -> bool:
    """Whether a model is a mixture of experts."""
    parts = pair.in_parts
    anatomies = (parts[each.name].anatomy if parts else Anatomy.of(each.model) for each in pair)
    return any(with_experts(anatomy) for anatomy in anatomies)


def expert_module(expert: int) -> str:
    """What a table's column `module` calls one expert."""
    return f"{OF_EXPERT}{expert}"


def expert_of(module: str) -> int | None:
    """Which expert a table's column `module` names; None where it names none."""
    number = module.removeprefix(OF_EXPERT)
    return int(number) if number != module and number.isdecimal() else None


def mixtures_of(pair: Pair, prompts: Prompts) -> tuple[Mapping[str, Mixtures], list[str]]:
    """Find the mixtures of every model on a few tokens.

    Returns:
        By model and block; none where no block has experts or a choice cannot be read; and what a reader must know.
    """
    ids = (*prompts.deep, *prompts.pooled)[0].start(CHECKED).input_ids
    found: dict[str, Mixtures] = {}
    for variant in pair:
        try:
            found[variant.name] = find_mixtures(Anatomy.of(variant.model), ids)
        except torch.OutOfMemoryError:
            raise
        except (MidblockError, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            said = error.what if isinstance(error, MidblockError) else str(error) or type(error).__name__
            reason = said.strip().splitlines()[0].rstrip(".")
            return {}, [f"No expert load and no router change: in {variant.name}, {reason}."]
    base = found[pair.base.name]
    if not base:
        return {}, []
    for name, mixtures in found.items():
        if {block: each.count for block, each in mixtures.items()} != {
            block: each.count for block, each in base.items()
        }:
            return {}, [f"No expert load and no router change: {name} has other experts than the base."]
    silent = _first_silent(found) or _first_refusing(pair, found, ids)
    if silent is None:
        return found, []
    unasked = {
        name: {block: replace(mixture, router=None) for block, mixture in mixtures.items()}
        for name, mixtures in found.items()
    }
    return unasked, [f"No own change of routers, and no reaction: {silent}."]


def _first_silent(found: Mapping[str, Mixtures]) -> str | None:
    """Where a router cannot be asked by hand."""
    silent = (
        f"in {name}, what chooses the experts of block {block} cannot be asked by itself"
        for name, mixtures in found.items()
        for block, mixture in mixtures.items()
        if mixture.router is None
    )
    return next(silent, None)


def _first_refusing(pair: Pair, found: Mapping[str, Mixtures], ids: Tensor) -> str | None:
    """Where a tuned model's router does not take what the base's is given."""
    given: dict[int, Call] = {}
    base = found[pair.base.name]
    with watch_choices(base, lambda block, choice: None, lambda *call: given.update({call[0]: call[1:]})):
        run_backbone(Anatomy.of(pair.base.model), ids)
    for variant in pair.tuned:
        for block, call in given.items():
            try:
                found[variant.name][block].ask(*call)
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
                return f"the router of block {block} of {variant.name} does not take what the base's is given"
    return None
