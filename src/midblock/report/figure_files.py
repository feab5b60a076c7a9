"""The files of figures for papers: those of one run, or of several runs together."""

from __future__ import annotations

from pathlib import Path

from midblock.report.figures.paper import write_figures
from midblock.report.figures.verbs import related
from midblock.report.read.joint import Joint
from midblock.report.read.reading import Run
from midblock.report.verb_page import Makers
from midblock.report.verbs import PAGES


def figures_of(run: Run) -> tuple[Makers, str]:
    """The figures of a single run, and the name of the one that stands for all."""
    page = PAGES[run.verb]
    makers = {**page.figures, **({"correlations": related} if page.correlated else {})}
    return makers, page.still or next(iter(makers), "")


def write_joint_figures(run: Joint, folder: Path) -> dict[str, Path]:
    """Write the figures of each verb that has runs, and the one of their correlations.

    Returns:
        Figure name → path of its PNG.
    """
    written: dict[str, Path] = {}
    for verb, page in PAGES.items():
        part = run.of_verb(verb)
        if page.paper == "each":
            written |= _each(part, folder, page.figures)
        elif page.paper == "joined" and len(part.table):
            written |= write_figures(part, folder, page.figures)
    return written | write_figures(run, folder, {"correlations": related})


def _each(run: Joint, folder: Path, makers: Makers) -> dict[str, Path]:
    """A figure for each run, numbered from the second on."""
    written: dict[str, Path] = {}
    for place, member in enumerate(run.runs, 1):
        numbered = {name if place == 1 else f"{name}-{place}": make for name, make in makers.items()}
        written |= write_figures(Joint.of([member]), folder, numbered)
    return written
