"""A tuning run's figures for papers: the loss by step, gradient and weight change by depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from midblock.report.figures.paper import depth_axis, draw, empty, legend
from midblock.report.page import palette
from midblock.report.page.chart import Panel, StepLine, StepPanel
from midblock.report.read.training_log import Log, averaged, groups, smoothed
from midblock.report.read.tuning import TuneRun
from midblock.report.tune.charts import gradient_panels, loss_panels, update_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 40  # values up to which each is a mark
PIXELS = 150  # pixels of the page an inch of paper stands for


def loss(run: TuneRun) -> Figure | None:
    """The page's panels below each other, on one axis of steps."""
    panels = loss_panels(run)
    if not panels:
        return None
    heights = [panel.height / PIXELS + 0.25 for panel in panels]
    figure, axes = empty(len(panels), 1, 0.6 + sum(heights), sharex=True, height_ratios=heights)
    for ax, panel in zip(axes, panels, strict=True):
        _steps(ax, run.log, panel)
    axes[-1].set_xlabel("optimizer step")
    legend(figure, axes[:1])
    return figure


def gradient_by_depth(run: TuneRun) -> Figure | None:
    return _by_depth(run, gradient_panels(run))


def update_by_depth(run: TuneRun) -> Figure | None:
    return _by_depth(run, update_panels(run))


def _by_depth(run: TuneRun, panels: tuple[Panel, ...]) -> Figure | None:
    if not panels:
        return None
    figure, axes = empty(len(panels), 1, 0.6 + 1.2 * len(panels), sharex=True)
    for ax, panel in zip(axes, panels, strict=True):
        draw(ax, run, panel)
        ax.set_ylim(bottom=0)
    depth_axis(axes[-1], run, "head")
    axes[-1].set_xlabel("block, from embedding to head")
    return figure


def _steps(ax: Axes, log: Log, panel: StepPanel) -> None:
    for line in panel.lines:
        _line(ax, log, line)
    ax.set_title(panel.title)
    ax.set_ylabel(panel.unit)
    if panel.lines[0].mark == "thin":
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _line(ax: Axes, log: Log, line: StepLine) -> None:
    parts = groups(len(log))
    steps = np.array([log.steps[part.stop - 1] for part in parts])
    values = averaged(log.column(line.key), parts)
    known = np.isfinite(values)
    colour = palette.on_paper(int(line.look[1:]))
    if line.mark == "smooth":
        ax.plot(steps[known], values[known], color=colour, alpha=0.25, linewidth=0.8)
        ax.plot(steps[known], smoothed(values)[known], color=colour, label=line.name)
    else:
        look = "o-" if line.mark == "dots" and known.sum() <= FEW else "-"
        ax.plot(steps[known], values[known], look, color=colour, label=line.name, linewidth=0.9, markersize=2.5)


TUNE_FIGURES: Mapping[str, Callable[[TuneRun], Figure | None]] = {
    "loss": loss,
    "gradient_by_depth": gradient_by_depth,
    "update_by_depth": update_by_depth,
}
