"""`auto:RUN`: a layer plan from an analysis, or the one that `midblock recommend` wrote down.

The shortest run of neighbouring blocks that holds half of Σ change_own (of Σ delta_rel, where that was not measured).
What states carry is no ground for it: a block that only reacts adds to their change too. Where the evidence does not
say where the tuning acts, no plan is made of it. It is the quick rule, of one curve: `midblock recommend` looks for
change points, asks whether noise shows as much, and holds several runs against each other. Described in
docs/tuning/layers.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float64

from midblock.analysis.verdict import Verdict
from midblock.base import LayerPlan, LayerTable, MidblockError
from midblock.metrics.headline_curve import headline_curve
from midblock.tuning.place.recommended import RECOMMENDED, recommended

SHARE = 0.5
TRY = "analyse more prompts (--num-token-samples), or name the blocks: --layers 6-17"
CURVES = (("change_own", "residual"), ("delta_rel", "block"))


def plan_from_run(folder: Path | str, total: int) -> LayerPlan:
    """The plan that a recommendation wrote down; of an analysis the shortest run of blocks with half of what changed.

    Of several tuned models or datasets the first counts.

    Args:
        folder: a run folder of `midblock recommend` or `midblock analyze`.
        total: L of the model to tune.

    Raises:
        MidblockError: no such folder, another depth, no change by block in it, or none that the evidence places.
    """
    if (Path(folder) / RECOMMENDED).is_file():
        return recommended(Path(folder), total)
    table = LayerTable.read(Path(folder))
    models = [name for name in table.models if name != "base"]
    if models and table.blocks != total:
        raise MidblockError(f"{folder} is about a model of {table.blocks} blocks; this one has {total}")
    if models and (why_not := Verdict.of(table, models[0]).why_not):
        raise MidblockError(f"{folder} does not say where {models[0]} was tuned: {why_not}", hint=TRY)
    window = window_of(table, models[0]) if models else None
    if window is None:
        what = f"{folder} does not say which blocks were changed (that takes change_own or delta_rel)"
        raise MidblockError(what, hint="midblock analyze BASE TUNED")
    return LayerPlan(total, tuple(range(window[0], window[1] + 1)))


def window_of(table: LayerTable, model: str) -> tuple[int, int] | None:
    """First and last block of the rule for one tuned model; None where the evidence tells no change by block.

    What counts is `change_own`, what each block's own tuning does to the base's states, over the tokens that are no
    sinks; where that was not measured, the block's relative weight change.
    """
    if Verdict.of(table, model).why_not:
        return None
    for metric, module in CURVES:
        curve = headline_curve(table, metric, model, module)
        curve = curve[(curve.layer >= 0) & (curve.layer < table.blocks) & np.isfinite(curve.value)]
        if not len(curve):
            continue
        curve = curve[curve.dataset == curve.dataset.iloc[0]]
        values = np.zeros(table.blocks)
        values[curve.layer.to_numpy()] = np.maximum(curve.value.to_numpy(float), 0.0)
        if values.sum() > 0:
            return shortest_window(values, SHARE)
    return None


def shortest_window(values: Float64[np.ndarray, "L"], share: float) -> tuple[int, int]:
    """First and last index of the shortest window that holds at least `share` of the sum; of equals the fullest."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    wanted = share * sums[-1] * (1 - 1e-12)
    for width in range(1, len(values) + 1):
        held = sums[width:] - sums[:-width]
        best = int(np.argmax(held))
        if held[best] >= wanted:
            return best, best + width - 1
    return 0, len(values) - 1
