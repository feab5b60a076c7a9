"""The smallest difference that a run could have detected: half of the interval, or what rounding makes if that is more.

A smaller change may be there and does not show: "no difference" is said down to here. Described in docs/metrics.md,
"What a number says".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from midblock.base import LayerTable
from midblock.base.names import BASE
from midblock.metrics.catalogue import METRICS
from midblock.metrics.headline_curve import headline_curve
from midblock.metrics.metric import PRECISION_FLOOR

if TYPE_CHECKING:
    import pandas as pd

HEADLINE = ("change_own", "cka_debiased", "kl_answers")


def detectable(table: LayerTable, model: str, rounding: float = 1.0) -> dict[str, float]:
    """Of each headline metric of one tuned model, in its unit: the median over its layers, embedding and norm left out.

    What has no interval is left out: of it nothing is known.

    Args:
        rounding: as of `midblock.analysis.states.with_states`.
    """
    found = {name: _smallest(table, name, model, rounding) for name in HEADLINE}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def in_words(smallest: Mapping[str, Any]) -> str:
    """The same as a line for people; "" where nothing is known."""
    parts = [f"{name} {value:.2g}" + _unit(name) for name, value in smallest.items()]
    return f"Smallest difference that could have been detected: {', '.join(parts)}." if parts else ""


def _smallest(table: LayerTable, name: str, model: str, rounding: float) -> float:
    curve = _inside(headline_curve(table, name, model), table.blocks)
    value, low, high = (curve[column].to_numpy(float) for column in ("value", "low", "high"))
    half = np.maximum(high - value, value - low)  # one end may be cut
    floors = _floors(table, name)
    floor = rounding * np.array([floors.get(int(layer), np.nan) for layer in curve.layer.to_numpy()])
    smallest = np.fmax(half, floor)[np.isfinite(half)]
    return float(np.median(smallest)) if smallest.any() else np.nan  # where all is 0, nothing was to be told apart


def _inside(curve: pd.DataFrame, blocks: int) -> pd.DataFrame:
    """The blocks; all there is of what is measured at the output alone."""
    inside = curve[(curve.layer >= 0) & (curve.layer < blocks)]
    return inside if len(inside) else curve


def _floors(table: LayerTable, name: str) -> dict[int, float]:
    """By layer the change that rounding makes of the base."""
    for metric in filter(None, (name, METRICS[name].floor_of)):
        floor = headline_curve(table, metric, BASE, reference=PRECISION_FLOOR)
        if len(floor):
            changes = map(METRICS[metric].change, floor.value.to_numpy(float).tolist())
            return dict(zip(floor.layer.to_numpy().tolist(), changes, strict=True))
    return {}


def _unit(name: str) -> str:
    unit = METRICS[name].unit
    return f" {unit}" if unit.isalpha() or (" " in unit and "≤" not in unit) else ""
