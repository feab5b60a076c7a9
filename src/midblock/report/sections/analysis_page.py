"""The page of an analysis: where in depth the change sits, then every metric."""

from __future__ import annotations

from pathlib import Path

from midblock.report.page import facts, parts
from midblock.report.page.island import page_data
from midblock.report.page.provenance import provenance_of
from midblock.report.page.shell import document
from midblock.report.read.reading import Run
from midblock.report.sections.correlation import DATA as CORRELATIONS
from midblock.report.sections.correlation import correlation_section
from midblock.report.sections.profile import hero_of, sections_of


def analysis_page(run: Run, still: Path | None = None) -> str:
    """The whole page as text; `still` is a picture of the first figure for readers without JavaScript."""
    hero, sections = hero_of(run), sections_of(run)
    related = correlation_section(run.table, run.correlations) if run.correlations else None
    if related:
        sections.insert(-1 if sections and sections[-1].folded else len(sections), related[0])
    charts = ([hero] if hero else []) + [chart for section in sections for chart in section.charts]
    first = parts.noscript(still, "Change by depth") + (parts.figure(hero) if hero else "")
    main = [parts.opening(run, first), parts.tiles(run, facts.facts_of(run))]
    main += [parts.section(section) for section in sections]
    main += [parts.numbers(), parts.made(provenance_of(run))]
    data = page_data(run, {chart.id: chart.as_spec() for chart in charts})
    data |= {CORRELATIONS: related[1]} if related else {}
    links = [(section.id, section.title) for section in sections] + [parts.NUMBERS, parts.MADE]
    return document(parts.subject(run), links, "".join(main), data)
