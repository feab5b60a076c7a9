"""What an analysis found about a tuned model, in one sentence: a change is worded here alone, and that there is none.

Tuning is placed by the blocks' own change and by their weights. States only carry change: a block that reacts to
changed input adds to it, however little of its own moved. Nothing is denied that was not compared, and no block is
named as what changed where its weights were read and did not move. What counts most stands before the first semicolon,
because joint pages quote that far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from midblock.analysis.differences import Differences, Part
from midblock.analysis.spread import EVEN
from midblock.analysis.verdict import Verdict

THIRDS = ("lower", "middle", "upper")
FEW = 0.1  # a share of values that differ below this is said
SMALL_ROLES = {"norm": "norms", "bias": "biases"}

Depth = Mapping[str, Any] | None


@dataclass(frozen=True)
class Depths:
    """How a change is spread over the blocks, as `summary.json` has it; None where it is not, or was not measured.

    Attributes:
        own: what the blocks' own tuning does to the base's states.
        weights: how far their weights moved.
        states: what they add to the change that states carry.
        verdict: what the evidence lets be said of `own`.
        carrying: the same of `states`.
    """

    own: Depth
    weights: Depth
    states: Depth
    verdict: Verdict
    carrying: Verdict


def reading(name: str, found: Differences, depths: Depths, *, blocks: int, whole: bool) -> str:
    """The sentence about one tuned model.

    Args:
        found: what differs at all.
        blocks: L.
        whole: False where parts of the models were not compared.
    """
    if not found.anywhere:
        return _same(name, found, whole)
    if found.weights and not found.roles:
        return _moved_outside(name, found, blocks) if found.outside else _moved_nowhere(name, found, blocks)
    if found.roles:
        return _moved_inside(name, found, depths, blocks)
    return _unread(name, found, depths, blocks)


def place(found: Differences, depths: Depths) -> str:
    """Where the change of one of several models gathers, in a few words."""
    if not found.anywhere:
        return "nowhere" if found.weights else "nowhere on these prompts"
    if found.weights and not found.roles and found.outside:
        return f"outside the blocks ({', '.join(part.name for part in found.outside)})"
    if depths.verdict.why_not:
        return "not told by the evidence"
    if depth := depths.own or depths.weights:
        return _where(depth)
    if depths.states:
        return f"carried {_where(depths.states)}"
    return "somewhere" if found.layers or found.roles else "in its predictions alone"


def _same(name: str, found: Differences, whole: bool) -> str:
    if not found.weights:
        return f"{name} shows no difference from the base on these prompts; its weights were not compared."
    if whole and found.states:
        return f"{name} does not differ from the base."
    compared = "weight or state" if found.states else "weight"
    return f"{name} does not differ from the base in any {compared} that was compared."


def _moved_outside(name: str, found: Differences, blocks: int) -> str:
    parts = ", ".join(_part(part) for part in found.outside)
    return _ended(f"No block's weights moved in {name}, those outside did: {parts}", _seen(found, blocks))


def _moved_nowhere(name: str, found: Differences, blocks: int) -> str:
    what = f"states differ{_amounts(found, blocks)}" if found.layers else f"predictions differ{_divergence(found)}"
    return f"{name}'s {what}, though no weight that was compared moved."


def _moved_inside(name: str, found: Differences, depths: Depths, blocks: int) -> str:
    moved = f"weights moved{_only(found)}"
    if depths.weights:
        moved += f" {_where(depths.weights)}, most in block {depths.weights['peak_block']}"
    if found.share < FEW:
        moved += f" ({_percent(found.share)} of the values differ)"
    if depths.own:
        return _ended(_acts(name, depths.own, depths.verdict), f"its {moved}", _carried(depths))
    if found.states and not found.layers:
        return f"{name}'s {moved}, yet {_seen(found, blocks)}."
    return _ended(f"{name}'s {moved}", _carried(depths))


def _unread(name: str, found: Differences, depths: Depths, blocks: int) -> str:
    """Of weights that were not compared."""
    if depths.own:
        return _ended(_acts(name, depths.own, depths.verdict), _carried(depths))
    if depths.states:
        said = f"{name}'s states carry change that is added {_where(depths.states)}, most across block"
        return _ended(f"{said} {depths.states['peak_block']}", "which blocks were changed themselves was not measured")
    if found.layers:
        return _ended(f"{name}'s states differ{_amounts(found, blocks)}", "its weights were not compared")
    unseen = ", though no state measured on these prompts does" if found.states else ""
    return _ended(f"{name}'s predictions differ{_divergence(found)}{unseen}", "its weights were not compared")


def _acts(name: str, own: Mapping[str, Any], verdict: Verdict) -> str:
    if verdict.why_not:
        return f"The evidence does not say where {name}'s tuning acts ({verdict.why_not})"
    peak = f", most of all in block {own['peak_block']}" if verdict.peak else ""
    return f"{name}'s tuning acts {_where(own)}{peak}"


def _carried(depths: Depths) -> str:
    """Where change is added to the states, by acting or by reacting; "" where that is not known."""
    if not depths.states or not depths.carrying.peak:
        return ""
    return f"its states carry most change across block {depths.states['peak_block']}"


def _ended(*parts: str) -> str:
    return "; ".join(part for part in parts if part) + "."


def _seen(found: Differences, blocks: int) -> str:
    """What the prompts show of it; "" where no state was measured."""
    if found.layers:
        return f"states differ{_amounts(found, blocks)}"
    unseen = "no state measured on these prompts differs" if found.states else ""
    if not found.divergence:  # NaN is a difference too
        return unseen
    return f"{unseen}, predictions do{_divergence(found)}" if unseen else f"predictions differ{_divergence(found)}"


def _divergence(found: Differences) -> str:
    known = found.divergence is not None and not math.isnan(found.divergence)
    return f" (logit-lens KL of up to {found.divergence:.3g} nats)" if known else ""


def _amounts(found: Differences, blocks: int) -> str:
    """How much, at the first and at the last layer that differ; "" where that was not measured."""
    ends = list(dict.fromkeys((min(found.layers), max(found.layers))))
    if any(math.isnan(found.layers[layer]) for layer in ends):
        return ""
    said = " and ".join(f"by {found.layers[layer]:.3g} {_layer(layer, blocks)}" for layer in ends)
    return f" {said} (of the base's norm)"


def _layer(layer: int, blocks: int) -> str:
    if layer < 0:
        return "at the embedding"
    return "at the final norm" if layer >= blocks else f"after block {layer}"


def _part(part: Part) -> str:
    facts = [] if math.isnan(part.relative) else [f"delta_rel {part.relative:.3g}"]
    if part.share < FEW:
        facts.append(f"{_percent(part.share)} of its values differ")
    return f"{part.name} ({', '.join(facts)})" if facts else part.name


def _only(found: Differences) -> str:
    small = [SMALL_ROLES[role] for role in sorted(found.roles) if role in SMALL_ROLES]
    return f" (in {' and '.join(small)} alone)" if len(small) == len(found.roles) else ""


def _where(depth: Mapping[str, Any]) -> str:
    """Where an amount sits, in words; near a third each it is called even."""
    if depth["thirds"] is None:
        return "among the blocks that were measured"
    third = int(np.argmax(depth["thirds"]))
    percent = round(100 * depth["thirds"][third])
    return "evenly over depth" if percent < EVEN else f"most in the {THIRDS[third]} third ({percent} %)"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
