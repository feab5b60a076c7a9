"""Rows of controls: what each metric came to under another change of the same size, and where the real one differs.

Of D random changes with mean m and standard deviation s another one would lie in m ± t_{D−1}·s·√(1+1/D) with 95 %: a
real value outside it is no work of the change's size alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from midblock.base import LEVEL, LayerRow, LayerTable
from midblock.metrics.catalogue import METRICS
from midblock.metrics.headline_curve import headline_curve
from midblock.metrics.metric import EQUAL_STEP, RANDOM, is_estimate

TOLD = ("change_own", "change_increment", "change_intensity_relative", "cka_debiased", "kl_answers")
SMALL = 0.02  # of the depth: a centre so near the middle leans nowhere


def random_rows(draws: Sequence[Iterable[LayerRow]]) -> list[LayerRow]:
    """METRIC.random of each paired metric: the mean over the draws, where another one would lie, and their number."""
    values: dict[tuple[str, int, str, str], list[float]] = {}
    first: dict[tuple[str, int, str, str], LayerRow] = {}
    for rows in draws:
        for row in _compared(rows):
            key = row.model, row.layer, row.module, row.metric
            values.setdefault(key, []).append(row.value)
            first.setdefault(key, row)
    made = []
    for key, found in values.items():
        D, mean = len(found), float(np.mean(found))
        half = stdtrit(D - 1, (1 + LEVEL) / 2) * np.std(found, ddof=1) * np.sqrt(1 + 1 / D) if D > 1 else np.nan
        low, high = float(mean - half), float(mean + half)
        made.append(replace(first[key], metric=key[-1] + RANDOM, value=mean, low=low, high=high, n=D))
    return made


def equal_step_rows(rows: Iterable[LayerRow]) -> list[LayerRow]:
    """METRIC.equal_step of each paired metric, with its interval over the prompts."""
    return [replace(row, metric=row.metric + EQUAL_STEP) for row in _compared(rows)]


def _compared(rows: Iterable[LayerRow]) -> list[LayerRow]:
    return [row for row in rows if is_estimate(row.metric) and METRICS[row.metric.partition(".")[0]].paired]


def beside_random(table: LayerTable, model: str) -> dict[str, dict[str, list[int]]]:
    """For each headline metric, the layers where tuning did more, less, or no other than a random change of its size.

    Empty where no random change was measured.
    """
    found = {}
    for metric in TOLD:
        random = headline_curve(table, metric, model, reference=RANDOM)
        if random.empty:
            continue
        both = headline_curve(table, metric, model).merge(random, on="layer", suffixes=("", "_random"))
        if not both.empty:
            sides = side_of(both.value, both.low_random, both.high_random)
            parts = {"above": 1, "below": -1, "not_different": 0}
            found[metric] = {word: both.layer[sides == of].astype(int).tolist() for word, of in parts.items()}
    return found


def side_of(value: Any, low: Any, high: Any) -> Any:
    """1 above where another random change would lie, −1 below it, 0 there; NaN where too few were drawn to tell."""
    value, low, high = (np.asarray(each, dtype=float) for each in (value, low, high))
    return np.where(np.isnan(low) | np.isnan(high), np.nan, (value > high) * 1.0 - (value < low))


def lean(center: float | None, equal: float | None) -> str:
    """Whether a profile's lean to one end is still there once all blocks take equal steps.

    Args:
        center: of the own change, 0 the input's end and 1 the output's; `equal` the same under equal steps.
    """
    if center is None or equal is None:
        return "not known"
    ours, theirs = center - 0.5, equal - 0.5
    if abs(ours) < SMALL:
        return "no lean"
    if ours * theirs <= 0:
        return "turns" if abs(theirs) >= SMALL else "vanishes"
    return "persists" if abs(theirs) >= abs(ours) / 2 else "vanishes"


def controls_of(table: LayerTable, model: str, centers: tuple[float | None, float | None]) -> dict[str, Any]:
    """What `summary.json` says of the controls; {} where none was run."""
    found: dict[str, Any] = {}
    if random := beside_random(table, model):
        found["random"] = random
    if not headline_curve(table, "change_own", model, reference=EQUAL_STEP).empty:
        found["equal_step"] = {"center": centers[1], "lean": lean(*centers)}
    return found
