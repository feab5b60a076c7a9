"""What a merge did, as table rows and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from midblock.base import LayerRow
from midblock.interventions.merge.alphas import Alphas
from midblock.interventions.merge.plan import Item
from midblock.interventions.merge.weights import Weights


def summary_of(weights: Weights, alphas: Alphas, base: str, tuned: str) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
        base, tuned: what the parents are called.
    """
    return {
        "headline": _headline(tuned, alphas),
        "models": [],
        "base": base,
        "tuned": tuned,
        "alphas": list(alphas.blocks),
        "embedding": alphas.embedding,
        "head": alphas.head,
        "overrides": {name: list(row) for name, row in alphas.overrides.items()},
        "tensors": len(list(weights)),
        "copied": sum(item.kind != "blend" for item in weights),
        "bytes": weights.size,
    }


def rows_of(weights: Weights, alphas: Alphas, name: str) -> Iterator[LayerRow]:
    """α of the blocks, and of every module given apart, with the number of parameters that take it."""
    blocks = len(alphas.blocks)
    counts: Counter[tuple[int, str]] = Counter()
    for item in (item for item in weights if item.paired):
        counts[_cell(item, alphas, weights)] += item.count
    for layer, alpha in enumerate([alphas.embedding, *alphas.blocks, alphas.head], start=-1):
        yield LayerRow(name, layer, blocks, "merge_alpha", alpha, counts[layer, "block"], module="block")
    for module, row in alphas.overrides.items():
        for layer, alpha in enumerate(row):
            if counts[layer, module]:
                yield LayerRow(name, layer, blocks, "merge_alpha", alpha, counts[layer, module], module=module)


def _cell(item: Item, alphas: Alphas, weights: Weights) -> tuple[int, str]:
    blocks = len(alphas.blocks)
    if item.projection.role == "head" and weights.base.tied and weights.tuned.tied:
        return -1, "block"
    layer, override = item.projection.layer, alphas.override_of(item.projection)
    return min(max(layer, -1), blocks), override or "block"


def _headline(tuned: str, alphas: Alphas) -> str:
    low, high = min(alphas.blocks), max(alphas.blocks)
    if low == high:
        others = _apart(alphas, lambda alpha: alpha != low)
        return f"Every block takes {low:.3g} of {tuned} and {1 - low:.3g} of the base{others}."
    last = max(index for index, alpha in enumerate(alphas.blocks) if alpha == high)
    first = alphas.blocks.index(high)
    blocks = f"block {first}" if first == last else f"blocks {first} to {last}"
    if any(alpha != high for alpha in alphas.blocks[first : last + 1]):
        blocks = f"{alphas.blocks.count(high)} blocks between {first} and {last}"
    mean = sum(alphas.blocks) / len(alphas.blocks)
    above = _apart(alphas, lambda alpha: alpha > high)
    return f"{tuned} counts most, with alpha {high:.3g}, in {blocks}{above}; the mean over the blocks is {mean:.2f}."


def _apart(alphas: Alphas, told: Callable[[float], bool]) -> str:
    """The parts with an α of their own that has to be told."""
    parts = {"the embedding": (alphas.embedding,), "the head": (alphas.head,), **alphas.overrides}
    found = [f"{part} {_range(row)}" for part, row in parts.items() if any(map(told, row))]
    return f" ({', '.join(found)})" if found else ""


def _range(row: Sequence[float]) -> str:
    low, high = min(row), max(row)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
