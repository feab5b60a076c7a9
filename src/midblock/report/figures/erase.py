"""Rates of a behaviour without and with a soft prompt, for papers, from the same numbers as on the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from midblock.base import Estimate
from midblock.report.figures.paper import empty, plain
from midblock.report.page import palette
from midblock.report.read.erased import KINDS, cells_of, estimate_of, hue_of, kinds_of
from midblock.report.read.joint import Joint
from midblock.runs.lenient import entries_of, mapping

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def erased_rates(run: Joint) -> Figure | None:
    """A panel for each kind of prompts: models without, then each cell with its soft prompt."""
    member = run.runs[0] if run.runs else None
    if member is None or not (kinds := kinds_of(member)):
        return None
    models, cells = entries_of(member.summary, "plain"), cells_of(member)
    names = [*(str(model.get("name")) for model in models), *(f"{cell.title} + prompt" for cell in cells)]
    hues = [*range(len(models)), *(hue_of(member, cell) for cell in cells)]
    figure, axes = empty(len(kinds), 1, 0.5 + len(kinds) * (0.35 + 0.2 * len(names)))
    for ax, kind in zip(axes, kinds, strict=True):
        rates = [estimate_of(mapping(mapping(model, "rates"), kind)) for model in models]
        rates += [cell.effect(kind, "after") for cell in cells]
        for place, (rate, hue) in enumerate(zip(rates, hues, strict=True)):
            _dot(ax, rate, len(names) - place, hue)
        ax.set_yticks(range(len(names), 0, -1), [plain(name) for name in names])
        ax.set_ylim(0.4, len(names) + 0.6)
        ax.set_xlim(-0.02, 1.02)
        ax.set_title(f"prompts {KINDS[kind]}")
    axes[-1].set_xlabel("rate of the behaviour")
    return figure


def erased_loss(run: Joint) -> Figure | None:
    """J on held-out prompts over the steps, a line a start."""
    member = run.runs[0] if run.runs else None
    cells = cells_of(member) if member is not None else []
    if not any(points for cell in cells for points in cell.curves):
        return None
    figure, (ax,) = empty(1, 1, 2.6)
    for place, cell in enumerate(cells):
        for start, points in enumerate(cell.curves):
            label = plain(cell.title) if not start else None
            ax.plot(*zip(*points, strict=True), color=palette.on_paper(place + 1), linewidth=1, label=label)
    ax.set_xlabel("step")
    ax.set_ylabel("J on held-out prompts")
    ax.legend(fontsize=6, frameon=False)
    return figure


def _dot(ax: Axes, rate: Estimate, place: int, hue: int) -> None:
    colour = palette.on_paper(hue)
    if math.isfinite(rate.low) and math.isfinite(rate.high):
        ax.plot([rate.low, rate.high], [place, place], color=colour, linewidth=1.2)
    if math.isfinite(rate.value):
        ax.plot([rate.value], [place], "o", color=colour, markersize=4)
