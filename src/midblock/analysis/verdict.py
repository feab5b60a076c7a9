"""Verdict: whether the evidence says where in depth a model's own tuning acts, and which block it changed most.

Thirds and blocks are compared by their intervals: those of one third's blocks are added up, as of numbers that go up
and down together (they rest on the same prompts), those of two sides combined as √(h₁² + h₂²), as of numbers that do
not. Two sides that do go together differ by less than that says, so a lead that is told holds; one that is not told may
be real. Described in docs/metrics.md, "What a number says".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from midblock.analysis.spread import EVEN, parts_in_thirds
from midblock.base import LayerTable
from midblock.base.states import MEASURED, STATES, TOO_FEW
from midblock.metrics.headline_curve import headline_curve

if TYPE_CHECKING:
    import pandas as pd

OWN = "change_own"
Amounts = Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class Verdict:
    """What the evidence lets be said of where a model's own tuning acts.

    Attributes:
        why_not: why it does not say where, as a clause; "" where it does, or where no own change was measured.
        peak: whether one block is changed more than any other.
        bare: whether there are no intervals, because prompts are too few.
    """

    why_not: str = ""
    peak: bool = True
    bare: bool = False

    @classmethod
    def of(cls, table: LayerTable, model: str, metric: str = OWN) -> Verdict:
        """Of one tuned model of a table with states.

        Args:
            metric: an amount by block.
        """
        curve = headline_curve(table, metric, model)
        curve = curve[(curve.layer >= 0) & (curve.layer < table.blocks) & np.isfinite(curve.value)]
        curve = curve[curve.dataset == curve.dataset.iloc[0]] if len(curve) else curve
        if not (curve.value > 0).any():
            return cls()
        if why_not := _as_nothing(curve) or _no_third(curve, table.blocks):
            return cls(why_not, peak=False)
        amount, half = curve.value.to_numpy(float), _halves(curve)
        first = int(amount.argmax())
        lead, reach = np.delete(amount[first] - amount, first), np.delete(np.hypot(half[first], half), first)
        bare = bool((curve.state == TOO_FEW).any())
        told = not bare and not _as_nothing(curve.iloc[[first]])
        return cls(peak=told and bool((lead > reach).all()), bare=bare)


def _as_nothing(curve: pd.DataFrame, where: str = "") -> str:
    """That no block's own change is told apart from none, or from any other; "" where one is."""
    if curve.state.isin([MEASURED, TOO_FEW]).any():
        return ""
    changed = curve[curve.value > 0]  # a block that did not change at all is no reason
    return f"what blocks {where}change of their own is {' or '.join(STATES[state] for state in changed.state.unique())}"


def _no_third(curve: pd.DataFrame, blocks: int) -> str:
    """That no third leads beyond the intervals; "" where one does, where all are called even, or some are not known."""
    if len(curve) < blocks:
        return ""
    parts = parts_in_thirds(curve.layer.to_numpy(), blocks)
    amount, half = curve.value.to_numpy(float) @ parts, _halves(curve) @ parts
    second, first = np.argsort(amount)[1:]
    if round(100 * amount[first] / amount.sum()) < EVEN:
        return ""
    if amount[first] - amount[second] <= np.hypot(half[first], half[second]):
        return "the leading third of the depth leads by less than the intervals"
    return _as_nothing(curve[parts[:, first] > 0], "of the leading third ")


def _halves(curve: pd.DataFrame) -> Amounts:
    """Half of each interval; 0 where there is none."""
    return np.nan_to_num((curve.high - curve.low).to_numpy(float)) / 2
