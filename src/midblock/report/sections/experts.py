"""Mixtures of experts on the page of an analysis: which experts are chosen, how that shifted, and by whose doing."""

from __future__ import annotations

from collections.abc import Iterator

from midblock.analysis.mixtures import expert_module, expert_of
from midblock.metrics.catalogue import METRICS
from midblock.report.page.chart import Chart, Panel, Section
from midblock.report.read.reading import Run, describe

CURVES = (
    "expert_load_shift", "router_change", "router_change_own", "router_change_reaction", "router_js", "router_js_own",
    "router_js_reaction", "expert_load_entropy",
)  # fmt: skip
MOST_EXPERTS = 48  # rows of the map
INTRO = (
    "Each token is sent to a few of a block's experts. The load is each expert's share of all choices, its shift the "
    "share that goes to other experts than in the base. A router's own change is what its tuning does where both are "
    "given what reaches the base's; the rest is its reaction to changed input."
)


def experts_section(run: Run) -> Section:
    """Curves by depth, and a map of layer by expert where each was asked for; empty of a model without experts."""
    curves = [metric for metric in CURVES if run.has(metric)]
    by_expert = [name for name, metric in METRICS.items() if metric.by_expert and name in run.present]
    charts = tuple(_curve(metric) for metric in curves) + tuple(_map(run, by_expert) if by_expert else ())
    return Section("experts", "Experts and routers", INTRO if charts else "", charts)


def _curve(metric: str) -> Chart:
    entry = describe(metric)
    return Chart(metric, entry.title, entry.caption, panels=(Panel(metric, zero=metric != "expert_load_entropy"),))


def _map(run: Run, metrics: list[str]) -> Iterator[Chart]:
    """Layer by expert, the most telling rows of many."""
    found = {expert_of(module) for metric in metrics for module in run.present[metric]}
    experts = sorted(expert for expert in found if expert is not None)
    caption = "A column for each layer, a row for each expert; point at a cell for its number."
    if len(experts) > MOST_EXPERTS:
        caption += f" Of {len(experts)} experts the {MOST_EXPERTS} are shown that differ most; the table has all."
        experts = sorted(_most_telling(run, metrics)[:MOST_EXPERTS])
    rows = tuple((f"expert {expert}", (expert_module(expert),)) for expert in experts)
    yield Chart("experts_heatmap", "Layer by expert", caption, "heat", metrics=tuple(metrics), rows=rows, wide=True)


def _most_telling(run: Run, metrics: list[str]) -> list[int]:
    """The experts by how far their numbers lie from the mean of their layer at most, the farthest first."""
    frame = run.table.frame[run.table.frame.metric == metrics[-1]]
    far = (frame.value - frame.groupby(["model", "layer"]).value.transform("mean")).abs()
    largest = far.groupby(frame.module).max().sort_values(ascending=False, kind="stable")
    return [expert for module in largest.index if (expert := expert_of(str(module))) is not None]
