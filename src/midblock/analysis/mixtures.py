"""The mixtures of experts of a pair, found and checked before the long pass; what cannot be read is said."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from midblock.analysis.prompts import Prompts
from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Pair
from midblock.evaluation import CHECKED
from midblock.trace.routing import Mixtures, find_mixtures

CHOICES, LOADS = "routers", "loads"  # kinds of rows, and the sources of metrics that they are for
EXPERTS = frozenset({CHOICES, LOADS})


def expert_module(expert: int) -> str:
    """What a table's column `module` calls one expert."""
    return f"expert:{expert}"


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
    return found, _routers_notes(found)


def _routers_notes(found: Mapping[str, Mixtures]) -> list[str]:
    """That own change of routers cannot be had, where one cannot be asked by hand."""
    for name, mixtures in found.items():
        if silent := [block for block, mixture in mixtures.items() if mixture.router is None]:
            what = f"in {name}, what chooses the experts of block {silent[0]} cannot be asked by itself"
            return [f"No own change of routers (router_change_own, router_js_own and what is left of them): {what}."]
    return []
