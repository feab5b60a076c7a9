"""The mixtures of experts of a pair, found and checked before the long pass; what cannot be read is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from midblock.analysis.prompts import Prompts
from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Pair, Variant
from midblock.checkpoints.blockwise import BlockwiseModel
from midblock.data import Batch, TokenizedPrompt, make_batches
from midblock.evaluation import CHECKED
from midblock.trace.mixture_finder import MixtureFinder, with_experts
from midblock.trace.routing import Call, Mixtures
from midblock.trace.tensor_store import TensorStore
from midblock.trace.walk import Work, walk_whole
from midblock.trace.walk_blocks import WalkBlocks

CHOICES, LOADS = "routers", "loads"  # kinds of rows, and the sources of metrics that they are for
EXPERTS = frozenset({CHOICES, LOADS})
OF_EXPERT = "expert:"


def has_experts(pair: Pair) -> bool:
    """Whether a model is a mixture of experts."""
    return any(with_experts(Anatomy.of(each.model)) for each in pair)


def expert_module(expert: int) -> str:
    """What a table's column `module` calls one expert."""
    return f"{OF_EXPERT}{expert}"


def expert_of(module: str) -> int | None:
    """Which expert a table's column `module` names; None where it names none."""
    number = module.removeprefix(OF_EXPERT)
    return int(number) if number != module and number.isdecimal() else None


def mixtures_of(
    pair: Pair, prompts: Prompts, advance: Callable[[float], None]
) -> tuple[Mapping[str, Mixtures], list[str]]:
    """Find the mixtures of every model on a few tokens; models that are walked block by block are read once for it.

    Args:
        advance: told of every model that is behind.

    Returns:
        By model and block; none where no block has experts or a choice cannot be read; and what a reader must know.
    """
    both, last = two_prompts((*prompts.deep, *prompts.pooled))
    finders = {variant.name: MixtureFinder(Anatomy.of(variant.model)) for variant in pair}
    for variant in pair:
        try:
            _walk(variant, finders[variant.name].work(variant.name, both, last))
        except torch.OutOfMemoryError:
            raise
        except (MidblockError, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            said = error.what if isinstance(error, MidblockError) else str(error) or type(error).__name__
            reason = said.strip().splitlines()[0].rstrip(".")
            return {}, [f"No expert load and no router change: in {variant.name}, {reason}."]
        advance(1)
    found: dict[str, Mixtures] = {name: finder.found for name, finder in finders.items()}
    base = found[pair.base.name]
    if not base:
        return {}, []
    for name, mixtures in found.items():
        if {block: each.count for block, each in mixtures.items()} != {
            block: each.count for block, each in base.items()
        }:
            return {}, [f"No expert load and no router change: {name} has other experts than the base."]
    silent = _first_silent(found)
    if silent is None:
        parts = {each.name: each.parts for each in pair.tuned if each.parts is not None}
        found |= {name: _standing(each, found[name]) for name, each in parts.items()}
        silent = _first_refusing(pair, found, finders[pair.base.name].calls)
    if silent is None:
        return found, []
    unasked = {
        name: {block: replace(mixture, router=None) for block, mixture in mixtures.items()}
        for name, mixtures in found.items()
    }
    return unasked, [f"No own change of routers, and no reaction: {silent}."]


def two_prompts(batches: Sequence[Batch]) -> tuple[Batch, Batch]:
    """A few tokens of two prompts, without padding, and those of the second alone; of one prompt, once backwards."""
    real = [
        ids[mask.bool()].tolist()
        for batch in batches[:2]
        for ids, mask in zip(batch.input_ids[:2], batch.attention_mask[:2], strict=True)
    ]
    one, other = (real[0], real[1]) if len(real) > 1 else (real[0], real[0][::-1])
    length = min(CHECKED, len(one), len(other))
    both = [TokenizedPrompt(number, tuple(ids[:length]), length) for number, ids in enumerate((one, other))]
    (together,), (last,) = (make_batches(each, batch_tokens=2 * CHECKED) for each in (both, both[1:]))
    return together, last


def _walk(variant: Variant, work: Work) -> None:
    """Do a work of one model, however it is held."""
    if variant.parts is None:
        walk_whole(work, {variant.name: Anatomy.of(variant.model)}, _nothing)
        return
    with TensorStore(None, None) as kept:
        WalkBlocks({variant.name: variant.parts}, kept, _nothing).run([work])


def _nothing(found: object) -> None:
    pass


def _standing(parts: BlockwiseModel, mixtures: Mixtures) -> Mixtures:
    """With routers that can be asked at any time: they are small, and the base's blocks pass before the model's own."""
    return {
        block: each if each.router is None else replace(each, router=parts.copy_of(each.router))
        for block, each in mixtures.items()
    }


def _first_silent(found: Mapping[str, Mixtures]) -> str | None:
    """Where a router cannot be asked by hand."""
    silent = (
        f"in {name}, what chooses the experts of block {block} cannot be asked by itself"
        for name, mixtures in found.items()
        for block, mixture in mixtures.items()
        if mixture.router is None
    )
    return next(silent, None)


def _first_refusing(pair: Pair, found: Mapping[str, Mixtures], calls: Mapping[int, Call]) -> str | None:
    """Where a tuned model's router does not take what the base's is given."""
    for variant in pair.tuned:
        for block, call in calls.items():
            try:
                found[variant.name][block].ask(*call)
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
                return f"the router of block {block} of {variant.name} does not take what the base's is given"
    return None
