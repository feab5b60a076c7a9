"""Whether a change is more than rounding, of the precision that the run itself computed in.

The precision floor sets the base in float32 beside itself in a small type: bfloat16, or float16 for a run in float16. A
run in the small type carries that rounding itself. One in float32 or float64 carries its own alone, which is estimated
as the floor times the ratio of the two types' epsilons (2^-16 for float32): rounding errors grow in proportion to it.
Described in docs/metrics.md, "Uncertainty".
"""

from __future__ import annotations

import torch

from midblock.base import LayerTable
from midblock.base.names import BASE
from midblock.metrics.headline_curve import headline_curve
from midblock.metrics.metric import PRECISION_FLOOR

METRIC = "change_intensity_relative"
SMALL = (torch.bfloat16, torch.float16)


def own_share_of_floor(dtype: torch.dtype) -> float:
    """What a run's own rounding is of the precision floor: 1 in a small type, 2^-16 in float32."""
    return 1.0 if dtype in SMALL else torch.finfo(dtype).eps / torch.finfo(torch.bfloat16).eps


def rounding_in_words(table: LayerTable, model: str, dtype: torch.dtype) -> str:
    """A sentence where the change at the last block is below the precision floor; "" where it is above, or unknown.

    Args:
        dtype: what the run computed in.
    """
    change, floor = _last(table, METRIC, model), _last(table, METRIC, BASE, PRECISION_FLOOR)
    if change is None or floor is None or not change <= floor:
        return ""
    own, name = floor * own_share_of_floor(dtype), str(dtype).removeprefix("torch.")
    if change <= own:
        estimated = "" if dtype in SMALL else ", as estimated from what rounding to bfloat16 does"
        return f"This is no more than rounding to {name} changes{estimated}."
    return f"This is below what bfloat16 could show, but about {_times(change / own)} times what {name} rounds."


def _last(table: LayerTable, metric: str, model: str, reference: str = "") -> float | None:
    """A metric's value at the last block that was measured."""
    curve = headline_curve(table, metric, model, reference=reference)
    curve = curve[curve.layer < table.blocks]
    return None if curve.empty else float(curve.value.iloc[-1])


def _times(ratio: float) -> str:
    return f"{float(f'{ratio:.2g}'):,g}" if ratio < 1e6 else f"{ratio:.0e}"
