"""What steering found by depth, as rows of the LayerTable: the directions themselves, and the scan block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from midblock.base import Estimate, LayerRow
from midblock.interventions.steer.directions import Directions


def rows_of(
    model: str, directions: Directions, scan: Sequence[tuple[Estimate, Estimate]], dataset: str
) -> Iterator[LayerRow]:
    """One row a block and metric.

    Args:
        model: the tuned model's name.
        scan: each block's change of NLL, and that of random directions; empty where nothing was scanned.
        dataset: reference of the prompts judged.
    """
    blocks = len(directions)
    for block, metric, found in (*_of_directions(directions), *_of_scan(scan)):
        yield LayerRow(model, block, blocks, metric, found.value, found.n, found.low, found.high, dataset)


def _of_directions(directions: Directions) -> Iterator[tuple[int, str, Estimate]]:
    for block, direction in enumerate(directions.of):
        values = {
            "steer_norm": direction.norm,
            "steer_norm_relative": direction.norm / direction.base_norm if direction.base_norm else math.nan,
            "steer_explained": direction.explained,
        }
        for metric, value in values.items():
            if not math.isnan(value):  # where the models do not differ
                yield block, metric, Estimate(value, math.nan, math.nan, directions.n)


def _of_scan(scan: Sequence[tuple[Estimate, Estimate]]) -> Iterator[tuple[int, str, Estimate]]:
    for block, (change, control) in enumerate(scan):
        yield block, "steer_nll_change", change
        yield block, "steer_nll_change.random", control
