"""The page of several runs: what changed, where it matters, what to do. A single probe, swap, … is a page of one."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from midblock.report.joint_provenance import joint_provenance
from midblock.report.next_section import next_section
from midblock.report.page import parts
from midblock.report.page.chart import Chart, Section
from midblock.report.page.island import page_data
from midblock.report.page.shell import document
from midblock.report.read.joint import Joint
from midblock.report.sections.carried_change import carried_change_section
from midblock.report.sections.correlation import DATA as CORRELATIONS
from midblock.report.sections.correlation import correlation_section
from midblock.report.story import lead, subject_of, verb_lead
from midblock.report.verb_page import Step
from midblock.report.verbs import PAGES, STEPS
from midblock.studies.evidence import suggestions


def single_page(run: Joint, still: Path | None = None) -> str:
    """The page of one run of a verb that has no page of its own; `still` is for readers without JavaScript."""
    member = run.runs[0]
    row = PAGES[member.verb]
    sections = row.sections(run)
    main = [verb_lead(run), parts.noscript(still, "The first figure"), *map(parts.section, sections)]
    links = [(section.id, section.title) for section in sections]
    if len(run.table):
        main.append(parts.numbers())
        links.append(parts.NUMBERS)
    main.append(parts.made(row.provenance(member)))
    charts = [chart for section in sections for chart in section.charts]
    return document(f"{member.verb}: {subject_of(run)}", [*links, parts.MADE], "".join(main), _data(run, charts))


def joint_page(run: Joint, still: Path | None = None) -> str:
    """The whole page as text; `still` is a picture of the first figure for readers without JavaScript."""
    found = suggestions(run.runs)
    related = correlation_section(run.table, run.correlations) if run.correlations else None
    openings = {step.id: _openings(step, run) for step in STEPS}
    steps = {step.id: sections_of_step(run, step) for step in STEPS}
    carried = carried_change_section(run)
    steps["matters"] += [section for section in (carried, related[0] if related else None) if section is not None]
    steps["do"].insert(0, next_section(run, found))
    main = [lead(run, found), parts.noscript(still, "Change by depth")]
    for place, step in enumerate(STEPS, 1):
        main.append(_step(place, step, run, "".join(html for _, html in openings[step.id]), steps[step.id]))
    links = [(step.id, step.title) for step in STEPS]
    if len(run.table):
        main.append(parts.numbers())
        links.append(parts.NUMBERS)
    main.append(parts.made(joint_provenance(run)))
    charts = [chart for opened in openings.values() for chart, _ in opened]
    charts += [chart for sections in steps.values() for section in sections for chart in section.charts]
    data = _data(run, charts) | ({CORRELATIONS: related[1]} if related else {})
    return document(subject_of(run), [*links, parts.MADE], "".join(main), data)


def sections_of_step(run: Joint, step: Step) -> list[Section]:
    found = (page.sections(run.of_verb(verb)) for verb, page in PAGES.items() if page.step == step.id)
    return [section for sections in found for section in sections]


def _openings(step: Step, run: Joint) -> list[tuple[Chart, str]]:
    """The figures that a step begins with, each as HTML with its key numbers below."""
    opened = []
    for verb, page in PAGES.items():
        part = run.of_verb(verb)
        chart = page.opening(part) if page.opening is not None and page.step == step.id else None
        if chart is not None:
            tiles = parts.tiles(part, page.facts(part)) if page.facts is not None else ""
            opened.append((chart, parts.figure(chart) + tiles))
    return opened


def _step(place: int, step: Step, run: Joint, opening: str, sections: list[Section]) -> str:
    """A step's heading, its opening, its sections."""
    told = any(PAGES[member.verb].step == step.id for member in run.runs) or not step.missing
    missing = "" if told else f'<p class="intro">{escape(step.missing)}</p>'
    heading = f'<h2 class="step"><i aria-hidden="true">{place}</i>{escape(step.title)}</h2>'
    inside = f"{heading}{missing}{opening}{''.join(map(parts.section, sections))}"
    return f'<div class="chapter" id="{step.id}">{inside}</div>'


def _data(run: Joint, charts: list[Chart]) -> dict[str, Any]:
    """Everything the scripts draw from; `switch` names the models that the reader may hide."""
    names = run.of_verb(*(verb for verb, page in PAGES.items() if page.shared)).table.models
    data = page_data(run, {chart.id: chart.as_spec() for chart in charts})
    data["switch"] = [name for name in run.tuned if name in names]
    for verb, page in PAGES.items():
        if page.data is not None:
            data |= page.data(run.of_verb(verb))
    return data
