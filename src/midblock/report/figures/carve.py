"""The necessity table for papers: how often each contender shows the behaviour, with intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from midblock.report.figures.paper import empty, plain
from midblock.report.page import palette
from midblock.report.read.joint import Joint
from midblock.report.sections.carve import necessity_levels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def necessity(run: Joint) -> Figure | None:
    """A dot with its interval for each contender, from the base down."""
    levels = necessity_levels(run.runs[0]) if run.runs else []
    if not levels:
        return None
    figure, (ax,) = empty(1, 1, 0.7 + 0.22 * len(levels))
    for place, (_, hue, value, low, high) in enumerate(reversed(levels)):
        colour = palette.on_paper(hue)
        if math.isfinite(low) and math.isfinite(high):
            ax.plot([low, high], [place, place], color=colour, linewidth=1.2)
        ax.plot([value], [place], "o", color=colour, markersize=4)
    ax.set_yticks(range(len(levels)), [plain(name) for name, *_ in reversed(levels)])
    ax.set_ylim(-0.6, len(levels) - 0.4)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel(f"share of prompts that show {plain(str(run.runs[0].summary.get('behaviour') or 'the behaviour'))}")
    return figure
