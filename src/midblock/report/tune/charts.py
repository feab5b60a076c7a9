"""Which figures the page of a tuning run has: each appears only where the run left its numbers."""

from __future__ import annotations

import math

import numpy as np

from midblock.report.page.chart import Chart, Panel, Section, StepLine, StepPanel
from midblock.report.page.modules import heat_rows
from midblock.report.read.training_log import LONGEST, groups
from midblock.report.read.tuning import TuneRun
from midblock.report.tune.plan import places_of

SMOOTHING = "Pale: as logged; strong: averaged over neighbouring steps."
HEAT = ("delta_rel", "gradient_norm", "gradient_norm_first")


def plan_chart(run: TuneRun) -> Chart | None:
    """The first figure: the model as a strip of blocks, the trained parts filled."""
    places = places_of(run)
    if not places:
        return None
    caption = "Every block from the embedding (left) to the output (right); filled is trained, pale is frozen."
    if any(math.isfinite(place.rank) for place in places):
        caption += " Bars show the rank of the adapters."
    return Chart("plan", "What was trained", caption, "plan", wide=True)


def tune_sections(run: TuneRun) -> list[Section]:
    """Every section with a figure to show, in reading order."""
    return [section for section in (_loss(run), _gradient(run), _weights(run)) if section.charts]


def step_keys(charts: list[Chart]) -> list[str]:
    """The quantities of the log that these figures show."""
    return list(dict.fromkeys(line.key for chart in charts for panel in chart.steps for line in panel.lines))


def loss_panels(run: TuneRun) -> list[StepPanel]:
    """Loss and plain NLL (once, where they are the same), penalty and divergence, learning rate."""
    log = run.log
    lines = [StepLine("loss", f"loss{_named(run)}", "m1")] if log.has("loss") else []
    if log.has("nll") and not _same(run):
        lines.append(StepLine("nll", "plain NLL", "m0"))
    if log.has("eval_nll"):
        lines.append(StepLine("eval_nll", "NLL, held-out", "m2", "dots"))
    panels = [StepPanel("Loss", "nats per token", tuple(lines), 230)] if lines else []
    for key, title, unit, look in (
        ("penalty", "Penalty of the anchor", "", "m3"),
        ("divergence", "KL to the reference", "nats per token", "m4"),
    ):
        if log.has(key):
            panels.append(StepPanel(title, unit, (StepLine(key, title, look),), 90))
    if log.has("learning_rate"):
        line = StepLine("learning_rate", "learning rate", "m0", "thin")
        panels.append(StepPanel("Learning rate", "", (line,), 56))
    return panels


def _named(run: TuneRun) -> str:
    name = run.plan.get("loss")
    if _same(run):
        return " (plain NLL)"
    return f" ({name})" if isinstance(name, str) and name else ""


def _same(run: TuneRun) -> bool:
    loss, nll = run.log.column("loss"), run.log.column("nll")
    return bool(np.isfinite(nll).any()) and np.allclose(loss, nll, rtol=1e-5, atol=1e-6, equal_nan=True)


def _loss(run: TuneRun) -> Section:
    panels = loss_panels(run)
    caption = SMOOTHING
    each = groups(len(run.log), LONGEST)
    if each and each[0].stop > 1:
        caption += f" Each point is the mean of {each[0].stop} logged steps."
    chart = Chart("loss", "Loss by step", caption, "steps", steps=tuple(panels), wide=True)
    intro = "How training went, optimizer step by optimizer step."
    return Section("loss", "Loss", intro, (chart,) if panels else ())


def _gradient(run: TuneRun) -> Section:
    charts = []
    if run.log.places:
        caption = "By block and step, a mean where several logged steps share a column; point at a cell for its number."
        charts.append(Chart("gradient_map", "Gradient by block and step", caption, "step_heat", wide=True))
    panels = gradient_panels(run)
    if panels:
        caption = "Blocks without a bar are frozen."
        charts.append(Chart("gradient_by_depth", "Gradient by depth", caption, panels=panels, wide=True))
    if run.log.has("grad_norm"):
        panel = StepPanel("Norm of the whole gradient", "L2", (StepLine("grad_norm", "gradient norm", "m1"),), 120)
        charts.append(Chart("grad_norm", "Gradient by step", SMOOTHING, "steps", steps=(panel,), wide=True))
    intro = "Where the loss pulled: the norm of the gradient of what is trained, before clipping."
    return Section("gradient", "Gradient", intro, tuple(charts))


def gradient_panels(run: TuneRun) -> tuple[Panel, ...]:
    """Mean over the steps, and the first step, which knows nothing of training yet."""
    titles = {"gradient_norm": "Mean over steps", "gradient_norm_first": "First step"}
    found = [metric for metric in titles if run.has(metric, "block")]
    return tuple(Panel(metric, "block", "bars", title=titles[metric], height=110) for metric in found)


def update_panels(run: TuneRun) -> tuple[Panel, ...]:
    """How far the weights of each block moved, attention and MLP apart where both did."""
    if not run.has("delta_rel", "block"):
        return ()
    moved = run.table.frame.query("metric == 'delta_rel' and value > 0")["module"].unique()
    parts = [module for module in ("attention", "mlp") if module in moved]
    titles = {"block": "Whole block", "attention": "Attention", "mlp": "MLP"}
    modules = ["block", *(parts if len(parts) > 1 else [])]
    return tuple(Panel("delta_rel", module, "bars", title=titles[module], height=110) for module in modules)


def _weights(run: TuneRun) -> Section:
    charts = []
    panels = update_panels(run)
    if panels:
        caption = "Norm of the change relative to the weights' norm before; blocks without a bar did not move."
        charts.append(Chart("update_by_depth", "Weight change by depth", caption, panels=panels, wide=True))
    # a single part beside the whole block would show the same numbers twice
    heat = [metric for metric in HEAT if len(set(run.present.get(metric, ())) - {"residual", "block"}) > 1]
    rows = tuple(heat_rows(module for metric in heat for module in run.present[metric]))
    if heat:
        caption = "Choose between weight change and gradient; point at a cell for its number."
        title = "Layer by projection"
        charts.append(Chart("weights_heatmap", title, caption, "heat", metrics=tuple(heat), rows=rows, wide=True))
    intro = "How far training moved the parameters themselves."
    return Section("weights", "Weights", intro, tuple(charts))


def speed_chart(run: TuneRun) -> Chart | None:
    """Tokens a second by step: a stall is easier to see than to find in the log."""
    if not run.log.has("tokens_per_second"):
        return None
    panel = StepPanel("Tokens a second", "", (StepLine("tokens_per_second", "tokens a second", "m1"),), 110)
    caption = "All tokens read, prompts too, between one logged step and the next."
    return Chart("speed", "Speed by step", caption, "steps", steps=(panel,), wide=True)
