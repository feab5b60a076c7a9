"""Which figures a run's page has: each section and panel appears only where its numbers do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from midblock.analysis.layers_in_words import layers_in_words
from midblock.metrics.catalogue import METRICS
from midblock.metrics.metric import NO_SINKS
from midblock.report.page.chart import Chart, Panel, Section
from midblock.report.page.modules import heat_rows
from midblock.report.read.reading import Run, describe
from midblock.report.sections.controls import controls_section
from midblock.report.sections.experts import CURVES as OF_EXPERTS
from midblock.report.sections.experts import experts_section
from midblock.runs.finished import BASE

INFORMATION = (
    "prompt_entropy", "dataset_entropy", "effective_rank", "effective_rank_centered", "curvature", "sparsity",
)  # fmt: skip
MOVED = (
    "change_intensity", "change_intensity_relative", "change_increment", "mean_shift", "mean_shift_relative",
    "procrustes",
)  # fmt: skip
WHOSE = ("change_own", "change_reaction", "own_share", "change_own_reverse")
HALF = 0.5  # of a prompt's squared norm
HEAT_METRICS = (
    "delta_rel", "delta_fro", "delta_spectral", "delta_stable_rank", "delta_effective_rank", "block_drift",
    "subspace_rotation_mean", "subspace_rotation_max", "changed_fraction",
)  # fmt: skip


def hero_of(run: Run) -> Chart | None:
    """The first figure: at which depth the change sits: by the blocks' own part, by weights, and as states carry it."""
    found = (_own_panel(run), _weights_panel(run), _added_panel(run), _carried_panel(run))
    panels = [panel for panel in found if panel]
    if not panels:
        return None
    caption = "Depth runs from the embedding (left) to the output (right); thirds are shaded."
    if any(panel.module == "residual" for panel in panels):
        caption += " Bands and whiskers are 95 % intervals over prompts."
    if any(panel.metric.endswith(NO_SINKS) for panel in panels):
        caption += " States without sink tokens."
    if any(panel.depth for panel in panels) and run.summary:
        caption += " Triangles mark the centre of the change"
        caption += ", percentages each third's share of it." if len(run.tuned) == 1 else "."
    panels = [replace(panel, height=height) for panel, height in zip(panels, (150, 100, 100, 130), strict=False)]
    return Chart(
        "change_by_depth", "Where in depth the change sits", caption, panels=tuple(panels), wide=True, thirds=True
    )


def _own_panel(run: Run) -> Panel | None:
    panel = Panel(run.told("change_own"), mark="bars", title="Change by the block's own tuning", depth="own")
    return panel if run.has(panel.metric) else None


def _weights_panel(run: Run) -> Panel | None:
    for metric in ("delta_rel", "delta_fro"):
        for module in ("block", "mlp", "attention"):
            if run.has(metric, module):
                of = "whole block" if module == "block" else module
                title = f"Weight change, {of}"
                return Panel(metric, module, "bars", title=title, depth="weight")
    return None


def _added_panel(run: Run) -> Panel | None:
    title = "Change across each block, by acting or reacting"
    panel = Panel(run.told("change_increment"), mark="bars", title=title, depth="representation")
    return panel if run.has(panel.metric) else None


def _carried_panel(run: Run) -> Panel | None:
    title = "Change carried in the residual stream"
    for metric in ("change_intensity_relative", "cka_debiased", "change_intensity"):
        if run.has(metric):
            return Panel(run.told(metric), distance=metric == "cka_debiased", title=title)
    return None


def sections_of(run: Run) -> list[Section]:
    """Every section with something to show, in reading order."""
    everything = [
        _whose(run), experts_section(run), controls_section(run), _sinks(run), _similarity(run), _information(run),
        _weights(run), _predictions(run), _others(run),
    ]  # fmt: skip
    return [section for section in everything if section.charts or section.body]


def _whose(run: Run) -> Section:
    intro = (
        "What a block's own tuning does, both blocks given the base's states, apart from what it makes of change that "
        "reached it from below: a block that only reacts was not changed."
    )
    return Section("whose", "Own and inherited", intro, tuple(_plain(run, WHOSE)))


def _sinks(run: Run) -> Section:
    """Which layers are one token's, and what that does to the curves."""
    if not any(metric.endswith(NO_SINKS) for metric in run.present):
        return Section("sinks", "Sink tokens", "", ())
    curve = run.table.curve("sink_share", BASE)
    most = curve[(curve.value > HALF) & (curve.layer < run.blocks)]
    intro = "A mean over tokens can be one token's: the one whose norm is many times the others'."
    if len(most):
        where = layers_in_words(most.layer)
        intro += (
            f" At {where} the largest token holds more than half of a prompt's squared norm: there, read the curves "
            "without sinks. Headline and tiles do."
        )
    return Section("sinks", "Sink tokens", intro, tuple(_plain(run, ("sink_share",))))


def _similarity(run: Run) -> Section:
    charts = []
    for metric, title in (
        ("cka_debiased", "Geometry kept by fine-tuning"),
        ("cka", "The biased estimate, for reference"),
    ):
        if run.has(metric):
            headline = metric == "cka_debiased"
            caption = describe(metric).caption + (_reference_note(run, metric) if headline else "")
            told = run.told(metric) if headline else metric
            panels = (Panel(told, height=240 if headline else 170, beside=_beside(run, told)),)
            modes = ("zoom", "full", "distance") if headline else ("full",)
            charts.append(Chart(metric, title, caption, panels=panels, modes=modes, wide=headline))
    charts += _plain(run, ("cosine_similarity", "cosine_centered"))
    intro = "How alike base and tuned model represent the same prompts, after every block."
    return Section("similarity", "Similarity", intro, tuple(charts))


def _reference_note(run: Run, metric: str) -> str:
    note = ""
    if run.has(f"{metric}.null"):
        note += " Null: the same estimate with prompts paired at random."
    if run.has(f"{metric}.precision_floor"):
        note += (
            " Precision floor: the base model in float32 against itself in 16 bits, which is what a run in 16 bits"
            " cannot tell from rounding; float32's own is some 65,000 times smaller."
        )
    return note


def _information(run: Run) -> Section:
    intro = "How many directions the states use, how straight their path is, how much of them is near zero."
    if any(run.has(f"{metric}.split_floor") for metric in INFORMATION):
        intro += (
            " The dotted ribbon is the split floor: how far two halves of the prompts differ in the base model alone."
        )
    return Section("information", "Information", intro, tuple(_plain(run, INFORMATION)))


def _weights(run: Run) -> Section:
    found = [
        metric
        for metric, modules in run.present.items()
        if "." not in metric and set(modules) - {"residual"} and not describe(metric).by_expert
    ]
    ordered = [*(m for m in HEAT_METRICS if m in found), *(m for m in found if m not in HEAT_METRICS)]
    caption = "Colours share one scale across models; point at a cell for its number."
    rows = heat_rows(module for metric in ordered for module in run.present[metric])
    title = "Weight change, layer by projection"
    heat = Chart("weights_heatmap", title, caption, "heat", metrics=tuple(ordered), rows=tuple(rows), wide=True)
    intro = "Tensor by tensor, what fine-tuning did to the parameters themselves."
    return Section("weights", "Weights", intro, (heat,) if ordered else ())


def _predictions(run: Run) -> Section:
    intro = "Next-token distributions read off at every depth through each model's own final norm and head."
    return Section("predictions", "Predictions", intro, tuple(_plain(run, ("logit_agreement", "logit_kl"))))


def _others(run: Run) -> Section:
    shown = {
        *INFORMATION,
        *WHOSE,
        *OF_EXPERTS,
        "sink_share",
        "cka",
        "cka_debiased",
        "cosine_similarity",
        "cosine_centered",
        "logit_agreement",
        "logit_kl",
    }
    known = [*(metric for metric in METRICS if metric not in {*shown, *MOVED}), *MOVED]
    extra = [metric for metric in run.present if metric not in METRICS and "." not in metric]
    return Section(
        "others", "Other metrics", "Everything else that was measured.", tuple(_plain(run, [*known, *extra])), True
    )


def _plain(run: Run, metrics: Sequence[str]) -> Iterator[Chart]:
    for metric in metrics:
        if run.has(metric) or run.has(metric + NO_SINKS):
            entry, told = describe(metric), run.told(metric)
            yield Chart(metric, entry.title, entry.caption, panels=(Panel(told, beside=_beside(run, told)),))


def _beside(run: Run, told: str) -> str:
    """The curve over all tokens, beside one without sinks."""
    plain = told.removesuffix(NO_SINKS)
    return plain if plain != told and run.has(plain) else ""
