"""Paper figures of probe, steer and flow, and VERB_FIGURES: which figures the runs of each verb have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.report.chart import Panel
from midblock.report.figures import FIGURES
from midblock.report.flow_section import flow_panels
from midblock.report.joint_run import Joint
from midblock.report.paper import depth_axis, draw, empty, legend, write_figures
from midblock.report.probe_section import probe_panels
from midblock.report.reading import Run
from midblock.report.steer_section import steer_panels
from midblock.report.swap_figures import correlations, swap
from midblock.report.tune_figures import TUNE_FIGURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Makers = Mapping[str, Callable[[Any], "Figure | None"]]
PIXELS = 150  # pixels of the page an inch of paper stands for


def early_exit(run: Joint) -> Figure | None:
    return _stacked(run, probe_panels(run))


def steering(run: Joint) -> Figure | None:
    return _stacked(run, steer_panels(run))


def gradient_flow(run: Joint) -> Figure | None:
    return _stacked(run, flow_panels(run), "head")


def merge_alphas(run: Joint) -> Figure | None:
    found = run.has("merge_alpha", "block")
    return _stacked(run, (Panel("merge_alpha", "block", "bars", height=130),) if found else (), "head")


def swapped(run: Joint) -> Figure | None:
    return swap(run.runs[0]) if run.runs else None


def related(run: Run) -> Figure | None:
    return correlations(run, run.correlations) if run.correlations else None


def _stacked(run: Run, panels: Sequence[Panel], last: str = "norm") -> Figure | None:
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


VERB_FIGURES: Mapping[str, Makers] = {
    "analyze": FIGURES,
    "flow": {"flow": gradient_flow},
    "probe": {"early_exit": early_exit},
    "swap": {"swap": swapped},
    "steer": {"steering": steering},
    "tune": TUNE_FIGURES,
    "merge": {"merge": merge_alphas},
}
FIRST = {"analyze": "change_by_depth", "tune": "loss"}  # the figure that stands for the page where nothing is drawn


def figures_of(run: Run) -> tuple[Makers, str]:
    """The figures of a single run, and the name of the one that stands for all."""
    verb = run.verb if run.verb in VERB_FIGURES else "analyze"
    makers = {**VERB_FIGURES[verb], **({"correlations": related} if verb == "analyze" else {})}
    return makers, FIRST.get(verb) or next(iter(makers), "")


def write_joint_figures(run: Joint, folder: Path) -> dict[str, Path]:
    """Write the figures of each verb that has runs; tuning runs keep theirs in their own folders.

    Returns:
        Figure name → path of its PNG.
    """
    written: dict[str, Path] = {}
    for verb, makers in VERB_FIGURES.items():
        part = run.of_verb(verb)
        if verb == "swap":
            written |= _swaps(part, folder)
        elif verb != "tune" and len(part.table):
            written |= write_figures(part, folder, makers)
    return written | write_figures(run, folder, {"correlations": related})


def _swaps(run: Joint, folder: Path) -> dict[str, Path]:
    """A figure for each swap run, numbered from the second on."""
    written: dict[str, Path] = {}
    for place, member in enumerate(run.runs, 1):
        name = "swap" if place == 1 else f"swap-{place}"
        written |= write_figures(Joint.of([member]), folder, {name: swapped})
    return written
