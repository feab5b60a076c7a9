"""Figures of a study for papers: score against trained parameters, gain against what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from midblock.report.figures.paper import empty, plain
from midblock.report.page import palette
from midblock.report.page.scatter import Dot
from midblock.report.read.joint import Joint
from midblock.report.read.studied import tasks_of
from midblock.report.sections.study import efficiency_dots, equal, forgetting_dots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def study_efficiency(run: Joint) -> Figure | None:
    """A panel for each task."""
    tasks = [task for member in run.runs[:1] for task in tasks_of(member)]
    if not tasks:
        return None
    figure, axes = empty(len(tasks), 1, 0.4 + 2.4 * len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        dots, across = efficiency_dots(task)
        _draw(ax, dots, across, f"{task.name}: {task.metric}")
        if equal(task):
            ax.set_xticks([])
        if math.isfinite(task.base.value):
            ax.axhline(task.base.value, color="0.5", linewidth=0.8, linestyle="--", zorder=0.5)
    return figure


def study_forgetting(run: Joint) -> Figure | None:
    """A panel for each task that tuning does not aim at."""
    found = [each for member in run.runs[:1] for each in forgetting_dots(tasks_of(member))]
    if not found:
        return None
    figure, axes = empty(len(found), 1, 0.4 + 2.4 * len(found))
    for ax, (aimed, task, dots) in zip(axes, found, strict=True):
        _draw(ax, dots, f"change of {task.name} ({task.metric})", f"change of {aimed.name}")
        for rule in (ax.axhline, ax.axvline):
            rule(0, color="0.6", linewidth=0.7, zorder=0.5)
    return figure


def _draw(ax: Axes, dots: Sequence[Dot], across: str, upward: str) -> None:
    for place, dot in enumerate(dots, 1):
        if not (math.isfinite(dot.x.value) and math.isfinite(dot.y.value)):
            continue
        colour = palette.on_paper(place)
        ax.plot([dot.x.value], [dot.y.value], "o", color=colour, markersize=4)
        ax.vlines([dot.x.value], dot.y.low, dot.y.high, color=colour, alpha=0.6, linewidth=1)
        ax.hlines([dot.y.value], dot.x.low, dot.x.high, color=colour, alpha=0.6, linewidth=1)
        ax.annotate(plain(dot.label), (dot.x.value, dot.y.value), xytext=(4, 3), textcoords="offset points", fontsize=7)
    ax.set_xlabel(plain(across))
    ax.set_ylabel(plain(upward))
