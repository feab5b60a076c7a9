"""The page of an analysis: where in depth the change sits, then every metric."""

from __future__ import annotations

from pathlib import Path

from midblock.report import facts, parts
from midblock.report.island import page_data
from midblock.report.provenance import provenance_of
from midblock.report.reading import Run
from midblock.report.sections import hero_of, sections_of
from midblock.report.shell import document


def analysis_page(run: Run, still: Path | None = None) -> str:
    """The whole page as text; `still` is a picture of the first figure for readers without JavaScript."""
    hero, sections = hero_of(run), sections_of(run)
    charts = ([hero] if hero else []) + [chart for section in sections for chart in section.charts]
    first = parts.noscript(still, "Change by depth") + (parts.figure(hero) if hero else "")
    main = [parts.opening(run, first), parts.tiles(run, facts.facts_of(run))]
    main += [parts.section(section) for section in sections]
    main += [parts.numbers(), parts.made(provenance_of(run))]
    data = page_data(run, {chart.id: chart.as_spec() for chart in charts})
    links = [(section.id, section.title) for section in sections] + [parts.NUMBERS, parts.MADE]
    return document(parts.subject(run), links, "".join(main), data)
