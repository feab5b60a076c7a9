"""Scores, and gain against loss, for papers, from the same numbers as on the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from midblock.report.figures.paper import empty, legend, plain
from midblock.report.page import palette
from midblock.report.read.evaluation import EvaluateRun
from midblock.report.read.joint import Joint
from midblock.report.sections.evaluate import Level, forgetting_point, hue_of, tasks_of
from midblock.runs.lenient import entries_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TASKS = 12


def scores(run: Joint) -> Figure | None:
    """A panel for each task, a dot with its interval for each model."""
    member = _member(run)
    if member is None or not (tasks := tasks_of(member)[:MOST_TASKS]):
        return None
    rows = entries_of(member.summary, "scores")
    models = list(dict.fromkeys(str(row.get("model")) for row in rows))
    figure, axes = empty(len(tasks), 1, 0.5 + len(tasks) * (0.35 + 0.2 * len(models)))
    for ax, task in zip(axes, tasks, strict=True):
        for place, row in enumerate(row for row in rows if row.get("task") == task):
            _dot(ax, Level.of(row), len(models) - place, hue_of(run, member, str(row.get("model"))))
        ax.set_yticks(range(len(models), 0, -1), [plain(name) for name in models])
        ax.set_ylim(0.4, len(models) + 0.6)
        ax.set_title(plain(task))
    return figure


def forgetting(run: Joint) -> Figure | None:
    """Each model in the plane of gain and loss, intervals as crosses."""
    member = _member(run)
    rows = entries_of(member.summary, "forgetting") if member else []
    points = [point for row in rows if member and (point := forgetting_point(member, run, row))]
    if not points or member is None:
        return None
    figure, (ax,) = empty(1, 1, 3.6)
    for point in points:
        (x, x_low, x_high), (y, y_low, y_high) = point["x"], point["y"]
        colour = palette.on_paper(hue_of(run, member, point["name"]))
        ax.plot([x], [y], "o", color=colour, markersize=4, label=plain(point["name"]))
        if x_low is not None and x_high is not None:
            ax.plot([x_low, x_high], [y, y], color=colour, linewidth=1)
        if y_low is not None and y_high is not None:
            ax.plot([x, x], [y_low, y_high], color=colour, linewidth=1)
    ax.axhline(0, color="0.6", linewidth=0.7)
    ax.axvline(0, color="0.6", linewidth=0.7)
    ax.set_xlabel("gain on target tasks")
    ax.set_ylabel("loss on other tasks")
    legend(figure, [ax])
    return figure


def _member(run: Joint) -> EvaluateRun | None:
    found = run.runs[0] if run.runs else None
    return found if isinstance(found, EvaluateRun) else None


def _dot(ax: Axes, level: Level, place: int, hue: int) -> None:
    colour = palette.on_paper(hue)
    if math.isfinite(level.low) and math.isfinite(level.high):
        ax.plot([level.low, level.high], [place, place], color=colour, linewidth=1.2)
    if math.isfinite(level.value):
        ax.plot([level.value], [place], "o", color=colour, markersize=4)
