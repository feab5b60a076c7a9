"""A carrier in a model that runs: put in for a while, at any scale, or taken out of a fine-tuned model.

Only the carried entries are written, and as they were they come back: the model is the same to the bit afterwards, also
when an error ends the block. Carriers within one another add: each change counts from the base's values, whatever
another put in their places. Cost: a copy of the carried entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.carried import summed
from midblock.checkpoints.carrier import Carrier
from midblock.checkpoints.entries import Entries
from midblock.checkpoints.parameters import Weights, parameter_in

# what stood in the places of carriers that are applied, in order: those within start from these values
_APPLIED: WeakKeyDictionary[nn.Module, list[tuple[str, Entries]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Applied:
    """What an applied carrier touches.

    Attributes:
        parameters: how many.
        entries: how many in all of them.
    """

    parameters: int
    entries: int


@contextmanager
def apply_carrier(
    model: nn.Module,
    carrier: Carrier | Path | str,
    *,
    scale: float = 1.0,
    remove: bool = False,
    base: Weights | None = None,
) -> Iterator[Applied]:
    """Let a model compute with a carrier's change while the `with` lasts.

    Args:
        model: the carrier's base; with `remove` the model tuned from it. Names and shapes are looked at; whether the
            weights are those of its base is only known of files (`open_checkpoint`), not of a model in memory.
        carrier: or its folder.
        scale: of the change: 1 puts the carrier's values in, to the bit; with `remove` 1 puts the base's in.
        remove: take out what the model has in the carrier's places, instead of putting the carrier in.
        base: the base's weights, which `remove` needs: a model, its tensors, or parameters by name.

    Yields:
        What it touches.

    Raises:
        MidblockError: the carrier is damaged, the model lacks a parameter of it or has it in another shape, the scale
            is no finite number, or `remove` without `base`.

    Example:
        >>> with apply_carrier(model, carrier, scale=0.5) as applied:
        ...     applied.parameters
        2
    """
    found = _fitted(carrier if isinstance(carrier, Carrier) else Carrier.open(carrier), model)
    if not abs(scale) < float("inf"):
        raise MidblockError(f"the scale {scale} of {found.name} is no finite number")
    if remove and base is None:
        hint = "base=… gives them: the base's model, its tensors, or parameters by name"
        raise MidblockError(f"{found.name} can only be removed with the base's values", hint=hint)
    parameters = _parameters(model, found)
    given = {}
    if remove and base is not None:
        given = {name: _base_value(base, name, parameters[name]) for name in found.held}
    stack = _APPLIED.setdefault(model, [])
    depth = len(stack)
    try:
        with torch.no_grad():
            for name in found.held:
                _apply(found.entries(name), name, parameters[name], stack, scale, given.get(name))
        yield Applied(len(found.held), found.count)
    finally:
        with torch.no_grad():
            while len(stack) > depth:
                name, before = stack.pop()
                before.put(parameters[name], before.values)


def put_in(model: nn.Module, carriers: Sequence[Carrier], name: str) -> None:
    """Put carriers into a model for good; several add.

    Args:
        name: what to call the model in messages.

    Raises:
        MidblockError: it lacks a parameter, or has it in another shape.
    """
    held: dict[str, nn.Parameter] = {}
    carriers = [_fitted(carrier, model) for carrier in carriers]
    for carrier in carriers:
        held |= _parameters(model, carrier, name)
    with torch.no_grad():
        for path, target in held.items():
            parts = [(each.entries(path), 1.0) for each in carriers if path in each.held]
            if len(parts) == 1:
                parts[0][0].put(target, parts[0][0].values)
            else:
                target.copy_(summed(target.detach().cpu(), parts))


def combine(carriers: Sequence[Carrier], base: Weights, scales: Sequence[float] | None = None) -> dict[str, Entries]:
    """Several carriers of one base as the entries of one: base + Σ scale · (values − base).

    The places are all rows and columns that one of them keeps: where none of them has an entry, the base's value is.

    Args:
        base: the base's weights.
        scales: of each; 1 when left out.

    Returns:
        The entries of each parameter, for `write_carrier`.

    Raises:
        MidblockError: no carrier, as many scales as there are not carriers, or carriers of different bases.
    """
    factors = [1.0] * len(carriers) if scales is None else list(scales)
    if not carriers or len(factors) != len(carriers):
        raise MidblockError(f"{len(carriers)} carriers and {len(factors)} scales cannot be combined")
    for other in carriers[1:]:
        if other.config.base_hash != carriers[0].config.base_hash:
            what = f"{carriers[0].name} and {other.name} have different bases"
            raise MidblockError(f"{what}: {carriers[0].config.base}, {other.config.base}")
    found: dict[str, Entries] = {}
    for name in dict.fromkeys(name for each in carriers for name in each.held):
        pairs = zip(carriers, factors, strict=True)
        parts = [(each.entries(name), factor) for each, factor in pairs if name in each.held]
        value = parameter_in(base, name)
        kept = [_union([entries.indices[dim] for entries, _ in parts]) for dim in range(value.ndim)]
        found[name] = Entries.of(summed(value, parts).to(_widest(parts, value)), kept)
    return found


def _fitted(carrier: Carrier, model: nn.Module) -> Carrier:
    """The carrier with the names that its parameters have in this very model."""
    return carrier.named_as(Anatomy.of(model).names) if carrier.config.parts else carrier


def _parameters(model: nn.Module, carrier: Carrier, name: str | None = None) -> dict[str, nn.Parameter]:
    """The model's parameters that a carrier changes."""
    known = dict(model.named_parameters())
    carrier.check_on({key: tuple(value.shape) for key, value in known.items()}, name or "the model")
    if absent := next((key for key in carrier.held if known[key].is_meta), None):
        raise MidblockError(f"{absent} is not in memory, so {carrier.name} cannot be put in", hint="--device cpu")
    return {key: known[key] for key in carrier.held}


def _apply(
    entries: Entries,
    name: str,
    target: nn.Parameter,
    stack: list[tuple[str, Entries]],
    scale: float,
    base: Tensor | None,
) -> None:
    """Write a parameter's entries; what stood there goes on the stack first."""
    before = Entries(entries.indices, entries.taken(target.detach()))
    if base is not None:
        change, start = Entries(entries.indices, entries.taken(base)), None
    else:
        change, start = entries, _before_others(name, target, stack)
    stack.append((name, before))
    if start is None:
        change.put(target, change.scaled(target.detach(), scale))
    else:
        target.copy_(summed(start, [(change, scale)], start=target.detach().clone()))


def _before_others(name: str, target: nn.Parameter, stack: Sequence[tuple[str, Entries]]) -> Tensor | None:
    """The parameter as it was before any carrier; None where none is in it."""
    others = [entries for other, entries in reversed(stack) if other == name]
    if not others:
        return None
    start = target.detach().clone()
    for entries in others:
        entries.put(start, entries.values)
    return start


def _base_value(base: Weights, name: str, like: Tensor) -> Tensor:
    value = parameter_in(base, name)
    if value.shape != like.shape:
        raise MidblockError(f"{name} is {list(value.shape)} in the base and {list(like.shape)} in the model")
    return value


def _union(indices: Sequence[Tensor | None]) -> Tensor | None:
    known = [index for index in indices if index is not None]
    return torch.cat(known).unique() if len(known) == len(indices) else None


def _widest(parts: Sequence[tuple[Entries, float]], base: Tensor) -> torch.dtype:
    dtype = base.dtype
    for entries, _ in parts:
        dtype = torch.promote_types(dtype, entries.values.dtype)
    return dtype
