"""Controls: what another change of the same size does, so that a profile of step sizes is not taken for learning.

`random`: every tensor moves by a random change of the norm, and for an adapter of the rank, that tuning moved it by.
`equal-step`: the very change of tuning, scaled in each block so that ‖ΔW‖/‖W‖ is the same in all that moved (arXiv
2604.17177). Both are made on the fly: the tuned model gets other parameters while inside, and then the very same ones
back. Cost: a pass of all models over all prompts for each, and the changed weights once more in memory. Described in
docs/metrics.md, "Controls".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from midblock.analysis.control_words import Control
from midblock.base import MidblockError, generator
from midblock.checkpoints import Anatomy, Pair, Variant

# Of scaling a change until rounding leaves it the norm it should have: of few numbers, each rounding weighs more.
TRIES, TRIES_IF_FEW, FEW, SPAN = 8, 200, 10_000, 5.0
CLOSE = 1e-7


@dataclass(frozen=True)
class Moved:
    """One tensor of the decoder, before and after tuning.

    Attributes:
        name: its path in the base; what random numbers are drawn by.
        block: the block it belongs to; None outside.
        rank: of its change, where an adapter made it; None for a full one.
    """

    name: str
    block: int | None
    before: Tensor
    after: Tensor
    rank: int | None = None

    @property
    def change(self) -> Tensor:
        return self.after.detach().double() - self.before.detach().double().to(self.after.device)


def check_controllable(pair: Pair) -> None:
    """See that every tuned model has the base's own tensors.

    Raises:
        MidblockError: an adapter that is not merged, or tensors of another shape; the message names the first. Or the
            models are walked block by block.
    """
    if pair.in_parts:
        what = "controls change whole models, and these are walked block by block"
        raise MidblockError(what, hint="leave out --controls, or --max-memory where the models fit")
    for variant in pair.tuned:
        _moved(pair, variant)


@contextmanager
def changed(pair: Pair, control: Control, seed: int) -> Iterator[float]:
    """Give every tuned model the control's change instead of its own while inside.

    Yields:
        The largest relative error of a norm that rounding to the weights' type left.
    """
    exchanged: list[tuple[nn.Module, str, Tensor]] = []
    worst = 0.0
    try:
        for variant in pair.tuned:
            moved = [each for each in _moved(pair, variant) if not torch.equal(each.before, each.after)]
            new: dict[int, Tensor] = {}
            scales = _equal_steps(moved) if control.kind == "equal-step" else {}
            for each in moved:
                change = _random(each, control.draw, seed) if control.kind == "random" else each.change
                target = _norms(each.change) * scales.get(each.block, 1.0)
                new[id(each.after)], error = _placed(each, change, target)
                worst = max(worst, error)
            _exchange(variant.model, new, exchanged)
        yield worst
    finally:
        for module, name, tensor in reversed(exchanged):
            module._parameters[name] = tensor  # type: ignore[assignment]


def _moved(pair: Pair, variant: Variant) -> list[Moved]:
    ours, theirs = Anatomy.of(pair.base.model), Anatomy.of(variant.model)
    ranks = _ranks(variant)
    found = []
    places: list[tuple[str, int | None, nn.Module, nn.Module]] = [
        (f"{ours.names['blocks']}.{block}", block, ours.blocks[block], theirs.blocks[block])
        for block in range(len(ours))
    ]
    places += [(ours.names[part], None, getattr(ours, part), getattr(theirs, part)) for part in _OUTSIDE]
    seen: set[int] = set()
    for place, block, before, after in places:
        own, other = dict(before.named_parameters()), dict(after.named_parameters())
        if missing := sorted(own.keys() ^ other.keys()):
            what = f"{variant.name} has no {place}.{missing[0]} as the base has it, so no control of its change is made"
            raise MidblockError(what, hint="merge an adapter first (midblock merge), or leave out --controls")
        for name, tensor in own.items():
            full, tuned = f"{place}.{name}", other[name]
            if id(tuned) in seen:
                continue
            seen.add(id(tuned))
            if tensor.is_meta or tuned.is_meta:
                raise MidblockError(
                    f"{full} is not in memory, so no control of its change is made", hint="--device cpu"
                )
            if tensor.shape == tuned.shape and tensor.is_floating_point():  # a vocabulary of another size stays
                found.append(Moved(full, block, tensor, tuned, ranks.get(full)))
    return found


_OUTSIDE = ("embedding", "final_norm", "head")


def _ranks(variant: Variant) -> Mapping[str, int]:
    """The rank of each tensor's change, where a file of an adapter tells it."""
    if variant.checkpoint is None or variant.checkpoint.adapter is None:
        return {}
    with variant.tensors() as tensors:
        return {name: delta.rank for name, delta in tensors.changes.deltas.items()}


def _equal_steps(moved: list[Moved]) -> dict[int | None, float]:
    """The factor of each block's change: all get the relative step that the blocks that moved have together."""
    steps, sizes = dict[int, float](), dict[int, float]()
    for each in moved:
        if each.block is not None:
            steps[each.block] = steps.get(each.block, 0.0) + float(each.change.square().sum())
            sizes.setdefault(each.block, 0.0)
            sizes[each.block] += float(each.before.detach().double().square().sum())
    common = math.sqrt(sum(steps.values()) / sum(sizes.values())) if steps else 0.0
    return {block: common * math.sqrt(sizes[block] / steps[block]) for block in steps}


def _random(each: Moved, draw: int, seed: int) -> Tensor:
    """A random change of a tensor's shape, and of the rank of its own."""
    stream = generator(seed, "control", draw, each.name)
    shape = tuple(each.after.shape)
    if each.rank is None or len(shape) < 2:
        return torch.from_numpy(stream.standard_normal(shape)).to(each.after.device)
    *stack, rows, columns = shape
    rank = min(each.rank, rows, columns)
    left, right = (stream.standard_normal((*stack, *sides)) for sides in ((rows, rank), (rank, columns)))
    return torch.from_numpy(left @ right).to(each.after.device)


def _norms(change: Tensor) -> Tensor:
    """Frobenius norm of a matrix or vector; of each matrix where several are stacked."""
    sides = tuple(range(max(0, change.ndim - 2), change.ndim))
    return torch.linalg.vector_norm(change, dim=sides, keepdim=True)


def _placed(each: Moved, change: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """The base's tensor with a change of the wanted norm, in the tuned one's type, and by how much the norm is off."""
    start = each.before.detach().double().to(each.after.device)
    scale = torch.where(_norms(change) > 0, target / _norms(change), 0.0)
    tries = TRIES_IF_FEW if start.numel() < FEW else TRIES
    best, least, span = each.after.detach(), math.inf, 0.0
    for turn in range(tries):
        # Where rounding always ends at the same numbers, a scale beside the right one may give the right norm.
        aside = 0.0 if turn < TRIES else (2 * (turn - TRIES) / (tries - TRIES) - 1) * span
        found = (start + scale * (1 + aside) * change).to(each.after.dtype)
        norms = _norms(found.double() - start)
        error = float(torch.where(target > 0, (norms / target - 1).abs(), 0.0).max())
        if error < least:
            best, least = found, error
        if error <= CLOSE:
            break
        span = SPAN * error if turn < TRIES else span
        if turn < TRIES - 1:
            scale = torch.where(norms > 0, scale * target / norms, 2 * scale)
    return best, least


def _exchange(model: nn.Module, new: Mapping[int, Tensor], exchanged: list[tuple[nn.Module, str, Tensor]]) -> None:
    """Put new tensors where the old ones stand, in every module that shares them."""
    for module in model.modules():
        for name, tensor in list(module._parameters.items()):
            if tensor is not None and id(tensor) in new:
                exchanged.append((module, name, tensor))
                module._parameters[name] = nn.Parameter(new[id(tensor)], requires_grad=False)
