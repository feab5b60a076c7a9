"""A gate held against a run: of each condition, whether the run shows what it must not, and where.

A condition that nothing can be said of does not pass: what is not defined fails, what was not measured is an error.
Described in docs/gate.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.analysis.gate.conditions import Condition, read_conditions
from midblock.analysis.gate.verdicts import Gate, Place, Verdict
from midblock.analysis.layers_in_words import layers_in_words
from midblock.base import LayerTable, nearest, unknown, user_path
from midblock.base.json_file import shown
from midblock.base.names import BASE
from midblock.metrics.catalogue import LISTED, METRICS
from midblock.metrics.metric import NO_SINKS
from midblock.runs.finished import Finished, read_finished
from midblock.runs.lenient import entries_of
from midblock.runs.record import read_config

if TYPE_CHECKING:
    import pandas as pd


def check_gate(run: LayerTable | Path | str, conditions: str | Iterable[Condition]) -> Gate:
    """Hold a finished run against conditions; writes nothing.

    Args:
        run: its folder, or its table alone, which does not tell which numbers are not defined.
        conditions: like `kl_answers>0.5,change_own[0-5]>>0.05`.

    Returns:
        A verdict for each condition; `passed` where none of them holds and all are defined and measured.

    Raises:
        MidblockError: a condition that cannot be read, a name or a layer that is none, or no table there.

    Example:
        >>> gate = check_gate(analyze(load_pair(base, tuned), data, num_samples=12), "delta_rel>0.5,kl_answers>9")
        >>> gate.passed
        True
    """
    asked = read_conditions(conditions) if isinstance(conditions, str) else tuple(conditions)
    found = Results.of(run)
    return Gate(tuple(_judge(condition, found) for condition in asked))


@dataclass(frozen=True)
class Results:
    """What a gate is held against.

    Attributes:
        models: names of all tuned models of the run.
        undefined: what was asked for and has no value, as `run.json` has it.
        sinkless: the run looked for sink tokens and no prompt has any, so that METRIC.no_sinks is METRIC.
    """

    table: LayerTable
    models: tuple[str, ...]
    undefined: Sequence[Mapping[str, Any]] = field(default_factory=list)
    sinkless: bool = False

    @classmethod
    def of(cls, run: LayerTable | Path | str) -> Results:
        """Of a table, or of a run folder and what its other files tell.

        Raises:
            MidblockError: no layer table is there, or its settings cannot be read.
        """
        if isinstance(run, LayerTable):
            return cls(run, tuple(name for name in run.models if name != BASE))
        done = read_finished(user_path(run))
        return cls(done.table, _models(done), entries_of(done.record, "undefined"), _sinkless(done))

    @cached_property
    def blocks(self) -> int:
        """L."""
        return self.table.blocks

    def rows(self, metric: str) -> pd.DataFrame:
        """All rows of a metric."""
        return self.table.frame[self.table.frame.metric == metric]

    def lost(self, metric: str) -> list[Place]:
        """Where a metric has no value and no row."""
        found = []
        for entry in self.undefined:
            layers, model = entry.get("layers"), entry.get("model")
            if entry.get("metric") == metric and isinstance(layers, list) and isinstance(model, str):
                found += [Place(model, layer, metric) for layer in layers if isinstance(layer, int)]
        return found


def _models(done: Finished) -> tuple[str, ...]:
    """The tuned models, also those of which nothing was measured."""
    named = [str(entry["name"]) for entry in entries_of(done.record, "models") if "name" in entry]
    return tuple(name for name in dict.fromkeys([*named, *done.table.models]) if name != BASE)


def _sinkless(done: Finished) -> bool:
    if any(NO_SINKS in metric for metric in done.table.metrics) or not done.record:
        return False
    tokens = read_config(done.folder, hint="give the table alone").get("tokens")
    return isinstance(tokens, str) and "no-sinks" in tokens


def _judge(condition: Condition, found: Results) -> Verdict:
    metric = condition.metric
    if found.sinkless and found.rows(metric).empty:
        metric = metric.replace(NO_SINKS, "", 1)
    rows, lost = found.rows(metric), found.lost(metric)
    if rows.empty and not lost:
        return Verdict(condition, unmeasured=_absent(condition, found))
    models = _models_of(condition, [*map(str, rows.model), *(place.model for place in lost)], found)
    modules = {*map(str, rows.module), *(place.module for place in lost)}
    if condition.module and condition.module not in modules:
        close = nearest(condition.module, modules)
        said = f"{metric} has no module {shown(condition.module)}{f' ({close} it has)' if close else ''}"
        return Verdict(condition, unmeasured=said)
    rows = rows[rows.model.isin(models) & rows.module.isin([condition.module] if condition.module else rows.module)]
    lost = [place for place in lost if place.model in models and condition.module in ("", place.module)]
    if condition.layers is not None:
        layers = condition.layers.of(found.blocks)
        rows, lost = rows[rows.layer.isin(layers)], [place for place in lost if place.layer in layers]
    places = list(map(Place.of, rows.itertuples(index=False)))
    told = {(place.model, place.layer) for place in places}
    places += [place for place in lost if (place.model, place.layer) not in told]
    return _compared(condition, models, places, found)


def _models_of(condition: Condition, having: Sequence[str], found: Results) -> tuple[str, ...]:
    """The models that a condition is about: all tuned ones, or the base where a metric stands for it alone.

    Of another verb's metrics those that have it: what stands under a model there is not asked of all of them.

    Raises:
        MidblockError: no model of that name.
    """
    if not condition.model:
        tuned = tuple(dict.fromkeys(name for name in having if name != BASE))
        return (found.models if condition.metric.partition(".")[0] in METRICS else tuned) if tuned else (BASE,)
    if condition.model not in (names := (BASE, *found.models)):
        raise unknown("model", condition.model, names)
    return (condition.model,)


def _compared(condition: Condition, models: Sequence[str], places: Sequence[Place], found: Results) -> Verdict:
    asked = sorted(condition.layers.of(found.blocks)) if condition.layers else []
    for model in models:
        there = {place.layer for place in places if place.model == model}
        if missing := [layer for layer in asked if layer not in there]:
            said = f"{condition.metric} of {model} was not measured at {layers_in_words(missing)}"
            return Verdict(condition, unmeasured=said)
        if not there:
            return Verdict(condition, unmeasured=f"{condition.metric} of {model} was not measured")
    judged = [(place, condition.holds(place.value, place.low, place.high)) for place in places]
    return Verdict(
        condition,
        failing=_worst_first(condition, [place for place, holds in judged if holds]),
        undefined=tuple(place for place, holds in judged if holds is None),
        passing=_worst_first(condition, [place for place, holds in judged if holds is False]),
    )


def _worst_first(condition: Condition, places: Sequence[Place]) -> tuple[Place, ...]:
    """By the number that is compared, what lies furthest beyond the bound first."""
    sign = -1 if condition.comparator.startswith(">") else 1
    return tuple(sorted(places, key=lambda place: sign * place.number(condition)))


def _absent(condition: Condition, found: Results) -> str:
    """Why nothing can be said of a metric without rows; raise MidblockError where there is no such metric at all."""
    measured, name = found.table.metrics, condition.metric.partition(".")[0]
    if name not in {*METRICS, *(each.partition(".")[0] for each in measured)}:
        raise unknown("metric", condition.metric, {*measured, *METRICS}, listed=LISTED)
    close = name if name in measured else nearest(condition.metric, measured)
    return f"{condition.metric} was not measured{f' ({close} was)' if close else ''}"
