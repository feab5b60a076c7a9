"""The same merge as a mergekit recipe: its linear method, with a weight gradient for each model and filters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from midblock.base.yaml_text import yaml_text
from midblock.checkpoints import Checkpoint, Projection
from midblock.interventions.merge.alphas import Alphas

OPENING = "# The same merge by mergekit: `mergekit-yaml mergekit.yaml OUT`. It computes in float32.\n"


@dataclass(frozen=True)
class Rule:
    """α of the tensors whose name contains `filter` (None: of all) and that no earlier rule took.

    Attributes:
        filter: part of a name.
        values: a gradient over the blocks; tensors outside them take its first number.
    """

    filter: str | None
    values: tuple[float, ...]

    def at(self, layer: int, blocks: int) -> float:
        """α at a block as mergekit reads it; `layer` −1 or `blocks` is outside."""
        inside = 0 <= layer < blocks
        t = (layer / (blocks - 1) if blocks > 1 else 1.0) if inside else 0.0
        scaled = t * (len(self.values) - 1)
        first = int(scaled)
        second, share = min(len(self.values) - 1, first + 1), scaled - first
        return (1 - share) * self.values[first] + share * self.values[second]


def rules(
    alphas: Alphas,
    tensors: Sequence[Projection],
    given: Mapping[str | None, tuple[float, ...]],
    head: Mapping[str, float],
) -> list[Rule]:
    """Write α of every tensor down as filters, checked name by name.

    Args:
        alphas: what each tensor takes.
        tensors: all that are written, by their names on disk.
        given: short gradients that mean the same as the α per block, by override; None for that of the blocks.
        head: α of tensors that take another than `alphas` says: a tied head.

    Returns:
        Rules in the order they are tried; a rule for each tensor where shorter ones would take the wrong ones.
    """
    blocks, names = len(alphas.blocks), [where.name for where in tensors]
    wanted = {where.name: head.get(where.name, alphas.of(where)) for where in tensors}
    groups: dict[str, list[str]] = {}
    for where in tensors:
        if (override := alphas.override_of(where)) is not None:
            groups.setdefault(override, []).append(where.name)
    outside = [where.name for where in tensors if where.block is None]
    found = [Rule(name, (wanted[name],)) for name in outside]
    for override, members in groups.items():
        values = given.get(override, alphas.overrides[override])
        found += [Rule(part, values) for part in _filters(members, set(names) - set(members) - set(outside))]
    found.append(Rule(None, given.get(None, alphas.blocks)))
    if all(math.isclose(alpha_of(found, where, blocks), wanted[where.name], abs_tol=1e-9) for where in tensors):
        return found
    return [Rule(name, (wanted[name],)) for name in sorted(names, key=len, reverse=True)]


def alpha_of(found: Iterable[Rule], where: Projection, blocks: int) -> float:
    """α of a tensor as mergekit reads the rules."""
    rule = next((rule for rule in found if rule.filter is None or rule.filter in where.name), None)
    return math.nan if rule is None else rule.at(where.layer, blocks)


def recipe(found: Sequence[Rule], base: str, tuned: str, written: torch.dtype) -> str:
    """The YAML.

    Args:
        found: from `rules`.
        base, tuned: how mergekit is to name the models.
        written: dtype of the result.
    """
    models = [
        {"model": base, "parameters": {"weight": _setting(found, complement=True)}},
        {"model": tuned, "parameters": {"weight": _setting(found, complement=False)}},
    ]
    content = {
        "merge_method": "linear",
        "models": models,
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": str(written).removeprefix("torch."),
    }
    return OPENING + yaml_text(content, default_flow_style=None, width=120)


def mergekit_name(checkpoint: Checkpoint) -> str:
    """A checkpoint as mergekit names it: a hub name, a folder, or `folder+adapter`."""
    reference = checkpoint.reference
    if checkpoint.adapter is not None:
        base = checkpoint.adapter.base
        below = base.text if base.kind == "hub" else str(checkpoint.folder.resolve())
        return f"{below}+{checkpoint.adapter.folder.resolve()}"
    return reference.text if reference.kind == "hub" else str(checkpoint.folder.resolve())


def _setting(found: Sequence[Rule], *, complement: bool) -> object:
    def values(rule: Rule) -> float | list[float]:
        numbers = [1 - value if complement else value for value in rule.values]
        return numbers[0] if len(numbers) == 1 else numbers

    if len(found) == 1:
        return values(found[0])
    return [{**({} if rule.filter is None else {"filter": rule.filter}), "value": values(rule)} for rule in found]


def _filters(members: Sequence[str], others: set[str]) -> list[str]:
    """Parts of names that all members and none of the others contain: one, or what follows each block."""
    inside = [name.split(".")[_after_block(name) :] for name in members]
    for part in inside[0]:
        if all(f".{part}." in name for name in members) and not any(f".{part}." in name for name in others):
            return [f".{part}."]
    return list(dict.fromkeys("." + ".".join(parts) for parts in inside))


def _after_block(name: str) -> int:
    return next(index for index, part in enumerate(name.split(".")) if part.isdigit()) + 1
