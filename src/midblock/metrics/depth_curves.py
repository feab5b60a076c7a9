"""Depth curves: a LayerTable turned into one column a metric and one row a block, so that curves can be compared."""

from __future__ import annotations

import numpy as np
import pandas as pd

from midblock.base import LayerTable

# Whole blocks and the residual stream; single projections would be ten curves that say nearly the same.
MODULES = ("residual", "block", "attention", "mlp", "base_head", "tuned_head")
LEAST_BLOCKS = 5
ROUNDING = 1e-12  # of the largest value: a curve that varies less is constant


def depth_curves(table: LayerTable) -> pd.DataFrame:
    """Arrange the metrics of a table by block.

    Left out: the embedding and the final norm, nulls, floors and samples (names with a "."), single projections,
    constant curves, and curves with fewer than `LEAST_BLOCKS` blocks. Of several datasets a curve shows the first.

    Returns:
        A frame with index 0…L-1 (`block`) and a column for each curve, NaN where it has no value. A column is called
        "metric" for the residual stream, "metric · module" otherwise, and " · model" follows where several models
        have that metric.
    """
    blocks = table.blocks
    index = pd.RangeIndex(blocks, name="block")
    frame = table.frame
    inside = frame.layer.between(0, blocks - 1) & np.isfinite(frame.value)
    frame = frame[inside & frame.module.isin(MODULES) & ~frame.metric.str.contains(".", regex=False)]
    columns = {}
    for (metric, module), rows in frame.groupby(["metric", "module"], sort=False):
        rows = rows[rows.dataset == rows.dataset.iloc[0]]
        several = rows.model.nunique() > 1
        for model, curve in rows.drop_duplicates(["model", "layer"]).groupby("model", sort=False):
            if _is_curve(curve.value.to_numpy()):
                label = _label(str(metric), str(module), str(model) if several else None)
                columns[label] = curve.set_index("layer").value.reindex(index)
    return pd.DataFrame(columns, index=index, dtype="float64")


def _is_curve(values: np.ndarray) -> bool:
    return len(values) >= LEAST_BLOCKS and float(np.ptp(values)) > ROUNDING * float(np.abs(values).max())


def _label(metric: str, module: str, model: str | None) -> str:
    parts = [metric, *([] if module == "residual" else [module]), *([model] if model else [])]
    return " · ".join(parts)
