"""What can be known of a gate before anything is measured: names, layers, and whether the settings measure it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from midblock.analysis.control_words import KINDS, read_controls
from midblock.analysis.gate.conditions import Condition
from midblock.analysis.layers_in_words import layers_in_words
from midblock.analysis.settings import AnalysisSettings
from midblock.analysis.work import kinds_of
from midblock.base import LayerPlan, MidblockError, unknown
from midblock.base.names import BASE
from midblock.checkpoints import Pair
from midblock.metrics.catalogue import LISTED, METRICS, choose
from midblock.metrics.metric import (
    NO_SINKS,
    NULL,
    PRECISION_FLOOR,
    REFERENCES,
    SEED,
    SEEDS,
    SPLIT_FLOOR,
    Metric,
    suffixes,
)

SAMPLE = re.compile(rf"{re.escape(SEED)}([1-9][0-9]{{0,8}})")
WITHOUT_INTERVAL = (SPLIT_FLOOR, PRECISION_FLOOR)


def check_names(conditions: Iterable[Condition]) -> None:
    """Raise MidblockError for a metric that is none, or has a suffix that is none; the nearest is named."""
    for condition in conditions:
        name = condition.metric.partition(".")[0]
        if name not in METRICS:
            raise unknown("metric", name, METRICS, listed=LISTED)
        reference = suffixes(condition.metric)[1]
        if reference and reference not in REFERENCES and not SAMPLE.fullmatch(reference):
            raise unknown("suffix of a metric", reference, [NO_SINKS, *REFERENCES, f"{SEED}1"])
        if condition.asks_evidence and (not METRICS[name].interval or reference in WITHOUT_INTERVAL):
            hint = f"compare its value: {condition.comparator[0]}"
            raise MidblockError(f"{condition.text}: {condition.metric} has no interval", hint=hint)


def check_askable(conditions: Iterable[Condition], settings: AnalysisSettings, pair: Pair) -> None:
    """See that an analysis with these settings measures what the conditions are about.

    Raises:
        MidblockError: it does not, or a model or a layer is not there.
    """
    plan = LayerPlan.parse(settings.layers, pair.blocks)
    names = [variant.name for variant in pair]
    for condition in conditions:
        if condition.model and condition.model not in names:
            raise unknown("model", condition.model, names)
        if reason := _unmeasured(condition, settings):
            raise MidblockError(f"{condition.text}: {condition.metric} would not be measured", hint=reason)
        asked = condition.layers.of(pair.blocks) if condition.layers else frozenset()
        metric = METRICS[condition.metric.partition(".")[0]]
        if others := asked - _layers_of(metric, pair.blocks):
            what = f"{condition.text}: {condition.metric} has no value at {layers_in_words(others)}"
            raise MidblockError(what, hint="leave the layers out")
        some = len(plan.blocks) < pair.blocks and metric.source != "heads"  # behind the last block whatever is measured
        if some and (others := asked - set(plan.blocks)):
            what = f"{condition.text}: {layers_in_words(others)} would not be measured"
            raise MidblockError(what, hint=f"--layers has {plan} alone")


def _layers_of(metric: Metric, blocks: int) -> set[int]:
    """Where a metric can have a value: predictions behind the last layer, what a block does in blocks."""
    return {"heads": {blocks}, "own": set(range(blocks))}.get(metric.source, set(range(-1, blocks + 1)))


def _unmeasured(condition: Condition, settings: AnalysisSettings) -> str:
    """What to do so that it is measured; "" where it is."""
    name = condition.metric.partition(".")[0]
    tokens, reference = suffixes(condition.metric)
    metric = METRICS[name]
    if name not in choose(settings.metrics):
        return f"--metrics {settings.metrics},{name}"
    if condition.model == BASE and metric.paired and not reference:
        return "it compares a tuned model with the base: name a tuned one"
    return _switched_off(name, metric, settings) or _other_tokens(tokens, metric, settings) or _unreferenced(
        reference, metric, settings
    )  # fmt: skip


def _switched_off(name: str, metric: Metric, settings: AnalysisSettings) -> str:
    if metric.of_weights:
        return "" if settings.weights or settings.weights_only else "leave out --no-weights"
    if settings.weights_only:
        return "leave out --weights-only"
    if metric.source not in kinds_of(settings):
        return "raise --num-token-samples"
    return "--general DATA" if name.startswith("kl_general") and settings.general is None else ""


def _other_tokens(tokens: str, metric: Metric, settings: AnalysisSettings) -> str:
    if tokens and not metric.over_tokens:
        return "it is no mean over tokens, so it has no value without sinks"
    return "--tokens all,no-sinks" if metric.over_tokens and tokens not in settings.token_sets() else ""


def _unreferenced(reference: str, metric: Metric, settings: AnalysisSettings) -> str:
    if not reference:
        return ""
    if metric.of_weights:
        return "of weights there is no reference"
    if reference == NULL and metric.null is None:
        return "unrelated prompts say nothing of it"
    if reference == PRECISION_FLOOR and not (metric.paired and "floor" in kinds_of(settings)):
        return "it takes a metric that compares two models, --precision-floor and 4 token-level prompts"
    for word, suffix in KINDS.items():
        controls = read_controls(settings.controls, settings.control_draws)
        if reference == suffix and not (metric.paired and word in {control.kind for control in controls}):
            return f"it takes a metric that compares two models, and --controls {word}"
    if reference == SEEDS and settings.seeds < 2:
        return "--seeds 2"
    sample = SAMPLE.fullmatch(reference)
    return f"--seeds {int(sample[1]) + 1}" if sample and int(sample[1]) >= settings.seeds else ""
