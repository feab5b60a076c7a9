"""`auto:RUN`: a layer plan from an analysis. Provisional: the rule has not been scored against sweeps yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from midblock.base import LayerPlan, LayerTable, MidblockError

SHARE = 0.5
CURVES = (("change_increment", "residual"), ("delta_rel", "block"))


def plan_from_run(folder: Path | str, total: int) -> LayerPlan:
    """The shortest run of neighbouring blocks that holds half of what an earlier tuning changed inside blocks.

    What counts is `change_increment`, the change that each block adds to the residual stream; where states were not
    measured, the block's relative weight change. Of several tuned models or datasets the first counts.

    Args:
        folder: a run folder of `midblock analyze`.
        total: L of the model to tune.

    Raises:
        MidblockError: no such folder, another depth, or neither curve in it.
    """
    table = LayerTable.read(Path(folder))
    models = [name for name in table.models if name != "base"]
    for metric, module in CURVES:
        curve = table.curve(metric, models[0], module) if models else None
        if curve is None or not len(curve):
            continue
        curve = curve[curve["dataset"] == curve["dataset"].iloc[0]]
        values = np.zeros(total)
        for layer, value in zip(curve["layer"], curve["value"], strict=True):
            if layer >= total:
                raise MidblockError(f"{folder} is about a model of more than {total} blocks")
            if layer >= 0 and np.isfinite(value):
                values[int(layer)] = max(float(value), 0.0)
        if table.blocks != total:
            raise MidblockError(f"{folder} is about a model of {table.blocks} blocks; this one has {total}")
        if values.sum() > 0:
            first, last = shortest_window(values, SHARE)
            return LayerPlan(total, tuple(range(first, last + 1)))
    raise MidblockError(f"{folder} says nothing about change by block", hint="midblock analyze BASE TUNED")


def shortest_window(values: np.ndarray, share: float) -> tuple[int, int]:
    """First and last index of the shortest window that holds at least `share` of the sum; of equals the fullest."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    wanted = share * sums[-1] * (1 - 1e-12)
    for width in range(1, len(values) + 1):
        held = sums[width:] - sums[:-width]
        best = int(np.argmax(held))
        if held[best] >= wanted:
            return best, best + width - 1
    return 0, len(values) - 1
