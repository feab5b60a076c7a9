"""The figures of correlated depth curves: which go with the weight change, and every curve against every other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from midblock.base import LayerTable
from midblock.base.estimate import widened
from midblock.metrics import METRICS
from midblock.metrics.correlation import Correlations, correlate
from midblock.report.page.chart import Chart, Section
from midblock.report.page.island import numbers

if TYPE_CHECKING:
    import pandas as pd

CHANGES = ("delta_rel · block", "delta_fro · block")  # curves that stand for the weight change, the first one found
LEAST = 3  # curves; two make no matrix
MANY = 100  # pairs of curves from which the caption warns of chance
FEW = 8  # curves listed for each tuned model
DATA = "correlations"  # where the scripts find the data of this section
SMOOTH = (
    "Depth curves are smooth: neighbouring blocks are alike, so the blocks are no independent samples. Intervals use "
    "an effective number of blocks, which is smaller than their count; correlations do not say what causes what."
)


@dataclass(frozen=True)
class Strong:
    """A curve that goes with the weight change, the interval of its correlation away from 0."""

    change: str
    curve: str
    pearson: float
    low: float
    high: float
    n: int
    n_effective: float

    def clear_of(self, count: int) -> bool:
        """Whether the interval excludes 0 as that of the strongest of so many must: wider, on Fisher's scale."""
        if self.low == self.high:
            return True
        half = (math.atanh(self.high) - math.atanh(self.low)) / 2 if self.high < 1 and self.low > -1 else math.inf
        return abs(self.pearson) > math.tanh(widened(count) * half)

    @property
    def name(self) -> str:
        """The curve without the model's name where that is the weight change's own."""
        return self.curve.removesuffix(f" · {_model(self.change)}") if _model(self.change) else self.curve


def correlation_section(table: LayerTable, found: Correlations | None = None) -> tuple[Section, dict[str, Any]] | None:
    """The section and its data, which the page holds under the key `DATA`; None with fewer than three curves.

    Args:
        found: the table's correlations, where they are known already.
    """
    found = correlate(table) if found is None else found
    if len(found.curves) < LEAST or not np.isfinite(found.frame.pearson).any():
        return None
    strong = strongest(found)
    section = Section("correlations", "Correlations", _intro(found, strong), tuple(_charts(found, strong)))
    return section, correlation_data(found, strong)


def strongest(found: Correlations, most: int = FEW) -> list[Strong]:
    """The curves that correlate most strongly with each weight change, of those whose interval excludes 0.

    It is the interval of the strongest of all that are compared.

    Other measures of the weights are left out: that a block's spectral norm grew where its Frobenius norm did says
    nothing new.
    """
    return [strong for change in _changes(found.curves) for strong in _beside(found, change)[:most]]


def most_telling(found: Correlations, most: int) -> list[int]:
    """Rows of the matrix for a small figure: one curve of each cluster, then those nearest the weight change.

    Returns:
        Positions in `found.order`, ascending; at most `most`.
    """
    changes = _changes(found.curves)
    near = dict.fromkeys(found.curves, 0.0) | dict.fromkeys(changes, 1.0)
    for change in changes:
        for row in _rows_of(found.frame, change):
            near[row.curve] = max(near[row.curve], abs(row.pearson) if np.isfinite(row.pearson) else 0.0)
    ranked = sorted(range(len(found.order)), key=lambda row: -near[found.curves[found.order[row]]])
    clusters = [found.clusters[found.order[row]] for row in ranked]
    firsts = [row for place, row in enumerate(ranked) if clusters[place] not in clusters[:place]]
    return sorted(list(dict.fromkeys([*firsts, *ranked]))[:most])


def correlation_data(found: Correlations, strong: Sequence[Strong]) -> dict[str, Any]:
    """What the scripts draw from: curves and their clusters as they stand in the matrix, pairs as columns."""
    place = {found.curves[curve]: row for row, curve in enumerate(found.order)}
    columns = [name for name in found.frame.columns if name not in ("a", "b", "n")]
    pairs: dict[str, list[Any]] = {name: [place[label] for label in found.frame[name]] for name in ("a", "b")}
    pairs |= {name: numbers(found.frame[name]) for name in columns} | {"n": found.frame.n.tolist()}
    return {
        "curves": [found.curves[curve] for curve in found.order],
        "clusters": [found.clusters[curve] for curve in found.order],
        "pairs": pairs,
        "strongest": [
            {
                "change": s.change,
                "curve": s.curve,
                "name": s.name,
                "value": numbers([s.pearson, s.low, s.high]),
                "n": s.n,
            }
            | {"n_effective": numbers([s.n_effective])[0]}
            for s in strong
        ],
    }


def _charts(found: Correlations, strong: Sequence[Strong]) -> list[Chart]:
    charts = []
    if strong:
        caption = (
            f"Up to {FEW} curves whose interval excludes 0 even as wide as that of the strongest of all of "
            "them must be, the strongest first, with the interval of each alone; other measures of the weights are "
            "left out. Curves that only rise exclude nothing: too few blocks of them are independent."
        )
        charts.append(Chart("with_weight_change", "What goes with the weight change", caption, "forest", wide=True))
    caption = (
        "Like curves stand together; frames mark clusters, curves whose mean |r| is 0.7 or more. Pale cells without a "
        "dot have an interval that includes 0. Of differences: of the steps from block to block, which a shared trend "
        "with depth does not correlate; it has no interval here. Point at a cell for its numbers."
    )
    pairs = len(found.frame)
    if pairs >= MANY:
        caption += f" With {pairs:,} pairs some strong ones come by chance.".replace(",", "\u202f")
    modes = ["pearson", "spearman"]
    modes += ["differences"] if np.isfinite(found.frame.pearson_differences).any() else []
    title = "Every depth curve against every other"
    return [*charts, Chart("correlations", title, caption, "matrix", modes=tuple(modes), wide=True)]


def _intro(found: Correlations, strong: Sequence[Strong]) -> str:
    intro = f"Which of the {len(found.curves)} depth curves rise and fall together. {SMOOTH}"
    if not strong and _changes(found.curves):
        intro += (
            " Besides other measures of the weights, no curve's correlation with the weight change has an interval "
            "that excludes 0."
        )
    return intro


def _changes(curves: Sequence[str]) -> list[str]:
    """Labels of the weight change, one for each tuned model (`depth_curves` puts the model's name last)."""
    for name in CHANGES:
        labels = [label for label in curves if label == name or label.startswith(f"{name} · ")]
        if labels:
            return labels
    return []


def _model(change: str) -> str:
    """The tuned model of a weight change's label, "" where there is only one."""
    parts = change.split(" · ", 2)
    return parts[2] if len(parts) > 2 else ""


def _beside(found: Correlations, change: str) -> list[Strong]:
    models = {_model(label) for label in _changes(found.curves)}
    others = tuple(f" · {model}" for model in models - {_model(change)})
    rows = [row for row in _rows_of(found.frame, change) if not (others and row.curve.endswith(others))]
    compared = [row for row in rows if not _is_weights(row.curve)]
    clear = [row for row in compared if row.clear_of(len(compared))]
    return sorted(clear, key=lambda row: -abs(row.pearson))


def _rows_of(frame: pd.DataFrame, change: str) -> list[Strong]:
    rows = frame[(frame.a == change) | (frame.b == change)].to_dict("records")
    return [
        Strong(change, row["b"] if row["a"] == change else row["a"], row["pearson"], row["pearson_low"],
               row["pearson_high"], row["n"], row["n_effective"])
        for row in rows
    ]  # fmt: skip


def _is_weights(label: str) -> bool:
    entry = METRICS.get(label.split(" · ")[0])
    return entry is not None and entry.of_weights
