"""The state of each number: from a table's rows alone, what the evidence says of them.

A change is judged by how far a value lies from that of a model compared with itself (`Metric.same`), so that what falls
and what rises with a change are judged alike. The first that applies counts: no value; no more than rounding makes; no
interval, though the metric has one, because its rule finds the prompts too few; no more alike than unrelated prompts;
within what random changes of the same size do. Pure; cost: one look at each row. Rules: docs/metrics.md, "What a
number says".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from midblock.analysis.control_rows import side_of
from midblock.base import LayerRow, LayerTable
from midblock.base.names import BASE
from midblock.base.states import AS_NULL, AS_RANDOM, BELOW_FLOOR, MEASURED, NOT_DEFINED, TOO_FEW
from midblock.metrics.catalogue import METRICS
from midblock.metrics.metric import NO_SINKS, NULL, PRECISION_FLOOR, RANDOM, Metric, is_estimate

EXACT = 1e-12  # what float64 leaves of a similarity of a model with itself

Place = tuple[str, str, int, str, str]


def with_states(rows: Sequence[LayerRow], rounding: float = 1.0) -> list[LayerRow]:
    """The rows of one run, each with its state; references beside a metric and weights are what they are: measured.

    Args:
        rounding: how much of the precision floor the run's own precision makes: 1 where the models ran in the coarser
            of its two precisions, less where they ran in a finer one.
    """
    beside = {_place(row): row for row in rows}
    return [replace(row, state=state_of(row, beside, rounding)) for row in rows]


def state_of(row: LayerRow, beside: Mapping[Place, LayerRow], rounding: float = 1.0) -> str:
    """The state of one row.

    Args:
        beside: the rows of the same table, by model, dataset, layer, module and metric.
        rounding: as in `with_states`.
    """
    if math.isnan(row.value):
        return NOT_DEFINED
    metric = METRICS.get(row.metric.removesuffix(NO_SINKS))
    if metric is None or metric.of_weights or not is_estimate(row.metric):
        return MEASURED
    if metric.paired and _below_floor(row, metric, beside, rounding):
        return BELOW_FLOOR
    if metric.interval and math.isnan(row.low) and math.isnan(row.high):
        return TOO_FEW
    if metric.paired and _as_null(row, metric, beside):
        return AS_NULL
    if metric.paired and _as_random(row, beside):
        return AS_RANDOM
    return MEASURED


def counts(table: LayerTable, model: str) -> dict[str, dict[str, int]]:
    """Of each metric of one model how many of its numbers have each state, as `summary.json` has it."""
    frame = table.frame[table.frame.model == model]
    frame = frame[[is_estimate(name) for name in frame.metric]]
    return {str(name): dict(Counter(map(str, rows.state))) for name, rows in frame.groupby("metric", sort=False)}


def _place(row: LayerRow) -> Place:
    return row.model, row.dataset, row.layer, row.module, row.metric


def _beside(row: LayerRow, beside: Mapping[Place, LayerRow], metric: str, model: str = "") -> LayerRow | None:
    """The row at the same place of another metric, or of another model."""
    return beside.get((model or row.model, row.dataset, row.layer, row.module, metric))


def _below_floor(row: LayerRow, metric: Metric, beside: Mapping[Place, LayerRow], rounding: float) -> bool:
    """Whether the change is none, or no larger than what rounding makes of the base at that layer.

    What has no direction of its own (`own_share`) is judged by the metric that lends it the floor.
    """
    tokens = NO_SINKS if row.metric.endswith(NO_SINKS) else ""
    own, lent = row.metric, metric.floor_of + tokens
    judged = (row, metric) if metric.same is not None else (_beside(row, beside, lent), METRICS.get(metric.floor_of))
    if judged[0] is None or judged[1] is None:
        return False
    change = judged[1].change(judged[0].value)
    floors = (_beside(row, beside, name + PRECISION_FLOOR, BASE) for name in (own, lent))
    floor = next((each for each in floors if each is not None), None)
    noise = 0.0 if floor is None else rounding * _of(floor).change(floor.value)
    return change <= max(EXACT, noise)


def _of(reference: LayerRow) -> Metric:
    return METRICS[reference.metric.partition(".")[0]]


def _as_null(row: LayerRow, metric: Metric, beside: Mapping[Place, LayerRow]) -> bool:
    """Whether the change reaches that between unrelated prompts."""
    null = _beside(row, beside, row.metric + NULL)
    return null is not None and metric.change(row.value) >= min(map(metric.change, _ends(null)))


def _as_random(row: LayerRow, beside: Mapping[Place, LayerRow]) -> bool:
    """Whether the value lies where another random change of the same size would."""
    random = _beside(row, beside, row.metric + RANDOM)
    return random is not None and float(side_of(row.value, random.low, random.high)) == 0


def _ends(row: LayerRow) -> Iterable[float]:
    """Its interval, or the value where it has none."""
    return [row.value if math.isnan(end) else end for end in (row.low, row.high)]
