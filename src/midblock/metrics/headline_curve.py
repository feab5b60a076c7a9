"""The curve that a sentence, a tile or a plan reads: over the tokens that are no sinks, where there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from midblock.base import LayerTable
from midblock.metrics.metric import NO_SINKS

if TYPE_CHECKING:
    import pandas as pd


def headline_curve(
    table: LayerTable, metric: str, model: str, module: str = "residual", reference: str = ""
) -> pd.DataFrame:
    """One metric of one model by depth, sorted by layer; empty if it was not measured.

    Args:
        reference: a suffix of `midblock.metrics.metric`, for the row beside the metric's own.
    """
    without = table.curve(metric + NO_SINKS + reference, model, module)
    return table.curve(metric + reference, model, module) if without.empty else without
