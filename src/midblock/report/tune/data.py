"""What the page of a tuning run adds to its data: the plan, the log's curves, and the map of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midblock.report.page.island import numbers, page_data
from midblock.report.read.training_log import Log, averaged, groups, smoothed
from midblock.report.read.tuning import TuneRun, layer_of
from midblock.report.tune.plan import plan_data

CELLS = 9000  # of the map of gradients, at most
COLUMNS = 200


def tune_data(run: TuneRun, figures: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """Everything the scripts draw from; `keys` are the quantities of the log that some figure shows."""
    extra = {"plan": plan_data(run), "steps": steps_data(run.log, keys), "gradient": gradient_data(run)}
    return page_data(run, figures) | extra


def steps_data(log: Log, keys: list[str]) -> dict[str, Any]:
    """Each quantity as measured and smoothed; `each` logged steps are one point."""
    parts = groups(len(log))
    series = {key: averaged(log.column(key), parts) for key in keys}
    return {
        "step": [log.steps[part.stop - 1] for part in parts],
        "epoch": numbers(log.column("epoch")[part.stop - 1] for part in parts),
        "each": parts[0].stop if parts else 1,
        "raw": {key: numbers(values) for key, values in series.items()},
        "smooth": {key: numbers(smoothed(values)) for key, values in series.items()},
    }


def gradient_data(run: TuneRun) -> dict[str, Any] | None:
    """The norm of the gradient by layer and step, means of neighbouring steps where there are too many."""
    log = run.log
    layers = {place: layer for place in log.places if (layer := layer_of(place, run.blocks)) is not None}
    if not layers:
        return None
    parts = groups(len(log), min(COLUMNS, max(40, CELLS // len(layers))))
    return {
        "layer": list(layers.values()),
        "from": [log.steps[part.start] for part in parts],
        "to": [log.steps[part.stop - 1] for part in parts],
        "value": [numbers(averaged(log.gradient(place), parts)) for place in layers],
    }
