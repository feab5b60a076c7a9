"""Spread: how an amount lies over the depth, as its centre, its thirds and the block that holds most.

With a_l ≥ 0 the amount of block l and p_l its share of all, the centre is Σ p_l (l + ½)/L; thirds are sums of p_l, a
block that lies in two of them parted as it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

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
        lower, middle, upper = (float(each) for each in share @ parts_in_thirds(layers, blocks))
        depth = (layers + 0.5) / blocks
        return cls(float((share * depth).sum()), (lower, middle, upper), peak)


def parts_in_thirds(layers: np.ndarray, blocks: int) -> np.ndarray:
    """Which part of each block lies in each third of the depth, one row a block.

    Block l covers l/L to (l + 1)/L: where 3 does not divide L, some lie in two thirds, and no third holds more blocks.
    """
    low, edge = 3 * layers[:, None], blocks * np.arange(3)  # in units of 1/(3 L), so that whole blocks are exact
    return np.clip(np.minimum(low + 3, edge + blocks) - np.maximum(low, edge), 0, None) / 3
