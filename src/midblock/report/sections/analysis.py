"""The sections of analyses on a page that has more to tell: the most telling figures, the rest behind a click."""

from __future__ import annotations

from dataclasses import replace

from midblock.report.page.chart import Chart, Section
from midblock.report.read.joint import Joint
from midblock.report.sections.profile import hero_of, sections_of

SHOWN = ("whose", "experts", "controls", "similarity", "weights")


def analysis_sections(run: Joint) -> list[Section]:
    """An analysis's own figures, drawn for its own models; the less telling ones folded into one section."""
    names = tuple(run.table.models)
    found = sections_of(run) if len(run.table) else []
    found = [replace(part, charts=tuple(replace(chart, models=names) for chart in part.charts)) for part in found]
    shown = [part for part in found if part.id in SHOWN]
    charts = tuple(chart for part in found if part.id not in SHOWN for chart in part.charts)
    titles = ", ".join(part.title.lower() for part in found if part.id not in SHOWN)
    rest = Section("more", "More of the analysis", f"Also measured: {titles}.", charts, folded=True)
    return [*shown, rest] if charts else shown


def analysis_opening(run: Joint) -> Chart | None:
    """The figure that opens the page of several runs: where in depth the analysed models changed."""
    hero = hero_of(run) if len(run.table) else None
    return replace(hero, models=tuple(run.table.models)) if hero else None
