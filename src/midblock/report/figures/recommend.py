"""A recommendation for papers: the curves that were asked with their change points, and the front of a repair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from midblock.report.figures.paper import empty, plain
from midblock.report.page import palette
from midblock.report.read.joint import Joint
from midblock.report.sections.recommend import LOOKS, blocks_of
from midblock.runs.lenient import as_number, entries_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def asked_curves(run: Joint) -> Figure | None:
    """A panel a curve, its change points dashed and the recommended blocks shaded."""
    member = run.runs[0] if run.runs else None
    entries = [] if member is None else entries_of(member.summary, "evidence")
    curves = [(entry, scores) for entry in entries if isinstance(scores := entry.get("scores"), list)]
    curves = [(entry, scores) for entry, scores in curves if member is not None and len(scores) == member.blocks]
    if member is None or not curves:
        return None
    figure, axes = empty(len(curves), 1, 0.6 + 1.3 * len(curves), sharex=True)
    for ax, (entry, scores) in zip(axes, curves, strict=True):
        values = np.array([as_number(score) for score in scores])
        ax.bar(np.arange(len(values)), np.nan_to_num(values), color=palette.on_paper(1), alpha=0.6)
        for block in blocks_of(member):
            ax.axvspan(block - 0.5, block + 0.5, color=palette.on_paper(1), alpha=0.12, linewidth=0)
        cuts = entry.get("change_points")
        for cut in cuts if isinstance(cuts, list) else []:
            if type(cut) is int:
                ax.axvline(cut - 0.5, color="0.3", linestyle="--", linewidth=0.8)
        ax.set_title(plain(str(entry.get("title") or "")))
    axes[-1].set_xlabel("block (recommended ones shaded, change points dashed)")
    return figure


def repair_front(run: Joint) -> Figure | None:
    """Gain against forgetting of every blend on the validation sets."""
    points = entries_of(run.runs[0].summary, "front") if run.runs else []
    if not points:
        return None
    figure, (ax,) = empty(1, 1, 3.2)
    for family, look in LOOKS.items():
        mine = [point for point in points if point.get("family") == family]
        x, y = ([as_number(point.get(key)) for point in mine] for key in ("gain", "forgotten"))
        ax.scatter(x, y, s=14, color=palette.on_paper(int(look[1:])), label=family)
    ax.set_xlabel("gain, nats per token")
    ax.set_ylabel("forgotten, nats per token")
    ax.legend()
    return figure
