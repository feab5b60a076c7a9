"""Figures for papers of probe, swap, steer, flow and merge: the page's panels, drawn below each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from midblock.report.figures.paper import depth_axis, draw, empty, legend
from midblock.report.figures.swap import correlations, swap
from midblock.report.page.chart import Panel
from midblock.report.read.joint import Joint
from midblock.report.read.reading import Run
from midblock.report.sections.flow import flow_panels
from midblock.report.sections.probe import probe_panels
from midblock.report.sections.steer import steer_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 150  # pixels of the page an inch of paper stands for


def early_exit(run: Joint) -> Figure | None:
    return stacked(run, probe_panels(run))


def steering(run: Joint) -> Figure | None:
    return stacked(run, steer_panels(run))


def gradient_flow(run: Joint) -> Figure | None:
    return stacked(run, flow_panels(run), "head")


def merge_alphas(run: Joint) -> Figure | None:
    found = run.has("merge_alpha", "block")
    return stacked(run, (Panel("merge_alpha", "block", "bars", height=130),) if found else (), "head")


def swapped(run: Joint) -> Figure | None:
    return swap(run.runs[0]) if run.runs else None


def related(run: Run) -> Figure | None:
    return correlations(run, run.correlations) if run.correlations else None


def stacked(run: Run, panels: Sequence[Panel], last: str = "norm") -> Figure | None:
    """The page's panels below each other, sharing the axis of depth."""
    if not panels:
        return None
    heights = [panel.height / PIXELS + 0.25 for panel in panels]
    figure, axes = empty(len(panels), 1, 0.6 + sum(heights), sharex=True, height_ratios=heights)
    for ax, panel in zip(axes, panels, strict=True):
        ax.axvspan(run.blocks / 3 - 0.5, 2 * run.blocks / 3 - 0.5, color="0.5", alpha=0.08, linewidth=0)
        draw(ax, run, panel)
        ax.set_ylim(bottom=0 if panel.mark == "bars" else None)
    depth_axis(axes[-1], run, last)
    axes[-1].set_xlabel("block, from embedding to output (middle third shaded)")
    legend(figure, axes)
    return figure
