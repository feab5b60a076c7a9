"""The reading of a LayerTable: where in depth the change sits, in numbers and in one sentence.

With a_l ≥ 0 the amount of block l and p_l its share of all, the centre is Σ p_l (l + ½)/L; thirds are sums of p_l.
Weights are told by `delta_rel`, representations by `change_increment`. Described in docs/run_folder.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from midblock.base import LayerTable
from midblock.metrics.catalogue import METRICS
from midblock.metrics.metric import PRECISION_FLOOR, SEED, SEEDS

if TYPE_CHECKING:
    import pandas as pd

THIRDS = ("lower", "middle", "upper")
EVEN = 40  # percent: a largest third below this is called even


@dataclass(frozen=True)
class Spread:
    """How an amount is spread over the decoder blocks.

    Attributes:
        center: depth (0–1) of its centre of mass; None where not every block was measured.
        thirds: shares of the lower, middle and upper third of the blocks, which sum to 1; None likewise.
        peak_block: the block that holds most.
    """

    center: float | None
    thirds: tuple[float, float, float] | None
    peak_block: int

    @classmethod
    def of(cls, curve: pd.DataFrame, amount: np.ndarray, blocks: int) -> Spread | None:
        """Spread of `amount`, one non-negative number per row of `curve`; None if there is nothing to spread."""
        inside = ((curve.layer >= 0) & (curve.layer < blocks)).to_numpy()
        layers, amount = curve.layer.to_numpy()[inside], amount[inside]
        if not len(amount) or not np.isfinite(amount).all() or amount.sum() <= 0:
            return None
        share = amount / amount.sum()
        peak = int(layers[share.argmax()])
        if len(layers) < blocks:
            return cls(None, None, peak)
        third = np.minimum(layers * 3 // blocks, 2)
        shares = tuple(float(share[third == which].sum()) for which in range(3))
        middle = (layers + 0.5) / blocks
        return cls(float((share * middle).sum()), shares, peak)  # type: ignore[arg-type]


def summarize(table: LayerTable) -> dict[str, Any]:
    """Read a table: the spread of weight change and of representation change by depth, and the headline.

    Returns:
        What `summary.json` holds: `headline`, and for each tuned model its `reading`, `weight_depth`,
        `representation_depth`, `half_depth` (depth at which half of the last block's change is reached), and
        `last_block` (similarity there). With several samples of prompts also `spread`: for each of them, the first
        included, `center` of the change that blocks add, and `half_depth`.
    """
    paired = table.frame[table.frame.metric.isin([name for name, metric in METRICS.items() if metric.paired])]
    models = [_read_model(table, str(model)) for model in dict.fromkeys(paired.model)]
    if not models:
        return {"headline": "Nothing was compared.", "models": []}
    return {"headline": models[0]["reading"] if len(models) == 1 else _together(models), "models": models}


def _read_model(table: LayerTable, model: str) -> dict[str, Any]:
    blocks = table.blocks
    weights = table.curve("delta_rel", model, "block")
    weight_depth = Spread.of(weights, weights.value.to_numpy(), blocks)
    added = table.curve("change_increment", model)
    representation_depth = Spread.of(added, added.value.to_numpy(), blocks)
    facts: dict[str, Any] = {
        "name": model,
        "weight_depth": asdict(weight_depth) if weight_depth else None,
        "representation_depth": asdict(representation_depth) if representation_depth else None,
        "half_depth": _half_depth(table, model, blocks),
        "last_block": _last_block(table, model, blocks),
    }
    if samples := _per_sample(table, model, blocks):
        facts["spread"] = samples
    main = representation_depth or weight_depth
    facts["peak_block"] = main.peak_block if main else None
    facts["measured"] = len(weights) + len(added) > 0
    facts["reading"] = _sentence(facts, _is_rounding(table, model, blocks))
    return facts


def _per_sample(table: LayerTable, model: str, blocks: int) -> list[dict[str, float | None]]:
    """Where the change sits on each sample of prompts; nothing where there is only one."""
    suffixes = {name[name.index(SEED) :] for name in table.metrics if SEED in name} - {SEEDS}
    found: list[dict[str, float | None]] = []
    for suffix in ["", *sorted(suffixes, key=lambda suffix: int(suffix.removeprefix(SEED)))] if suffixes else []:
        added = table.curve("change_increment" + suffix, model)
        spread = Spread.of(added, added.value.to_numpy(), blocks)
        half = _half_depth(table, model, blocks, suffix)
        found.append({"center": spread.center if spread else None, "half_depth": half})
    return found


def _half_depth(table: LayerTable, model: str, blocks: int, suffix: str = "") -> float | None:
    """Depth of the first block whose relative change reaches half of the last measured block's."""
    curve = table.curve("change_intensity_relative" + suffix, model)
    curve = curve[(curve.layer >= 0) & (curve.layer < blocks)]
    if curve.empty or curve.value.iloc[-1] <= 0:
        return None
    return float(curve.depth[curve.value >= curve.value.iloc[-1] / 2].iloc[0])


def _last_block(table: LayerTable, model: str, blocks: int) -> dict[str, float]:
    found = {}
    for metric in ("cka_debiased", "cosine_similarity", "change_intensity_relative", "logit_agreement"):
        curve = table.curve(metric, model)
        curve = curve[curve.layer < blocks]
        if not curve.empty:
            found[metric] = float(curve.value.iloc[-1])
    return found


def _is_rounding(table: LayerTable, model: str, blocks: int) -> bool:
    """True when the change at the last block is no larger than what rounding to the other precision makes."""
    change = table.curve("change_intensity_relative", model)
    floor = table.curve("change_intensity_relative" + PRECISION_FLOOR, "base")
    change, floor = change[change.layer < blocks], floor[floor.layer < blocks]
    return not change.empty and not floor.empty and bool(change.value.iloc[-1] <= floor.value.iloc[-1])


def _sentence(facts: dict[str, Any], rounding: bool) -> str:
    name, weights, states = facts["name"], facts["weight_depth"], facts["representation_depth"]
    if not facts["measured"]:
        return f"{name}: where in depth it changed was not measured (that takes change_increment or delta_rel)."
    if not weights and not states:
        return f"{name} does not differ from the base."
    parts = []
    if states:
        block = states["peak_block"]
        parts.append(f"{name} changes what the model represents {_where(states)}, most of all across block {block}")
    if weights:
        lead = "its weights moved" if parts else f"{name}'s weights moved"
        parts.append(f"{lead} {_where(weights)}, most in block {weights['peak_block']}")
    sentence = "; ".join(parts) + "."
    return sentence + " This is no more than rounding to bfloat16 changes." if rounding else sentence


def _where(depth: dict[str, Any]) -> str:
    """Where an amount sits, in words; near a third each it is called even."""
    if depth["thirds"] is None:
        return "among the blocks that were measured"
    third = int(np.argmax(depth["thirds"]))
    percent = round(100 * depth["thirds"][third])
    return "evenly over depth" if percent < EVEN else f"most in the {THIRDS[third]} third ({percent} %)"


def _together(models: list[dict[str, Any]]) -> str:
    parts = []
    for facts in models:
        depth = facts["representation_depth"] or facts["weight_depth"]
        absent = "nowhere" if facts["measured"] else "not measured"
        parts.append(f"{facts['name']} {_where(depth) if depth else absent}")
    return "Where the change gathers: " + "; ".join(parts) + "."
