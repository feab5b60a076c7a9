"""The page of several runs: what changed, where it matters, what to do. A single probe, swap, … is a page of one."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from midblock.report import facts, parts
from midblock.report.chart import Chart, Section
from midblock.report.correlation_section import DATA as CORRELATIONS
from midblock.report.correlation_section import correlation_section
from midblock.report.flow_section import logged_run
from midblock.report.island import page_data
from midblock.report.joint_provenance import joint_provenance
from midblock.report.joint_run import Joint
from midblock.report.next_section import next_section
from midblock.report.provenance import provenance_of
from midblock.report.sections import hero_of
from midblock.report.shell import document
from midblock.report.story import lead, subject_of, verb_lead
from midblock.report.suggestion import suggestions_of
from midblock.report.tune_data import gradient_data
from midblock.report.verbs import SECTIONS, STEPS, Step

SWITCHED = ("analyze", "probe", "steer")  # runs whose curves of several models share a figure


def verb_page(run: Joint, still: Path | None = None) -> str:
    """The page of one run of a verb that has no page of its own; `still` is for readers without JavaScript."""
    member = run.runs[0]
    sections = SECTIONS[member.verb](run)
    main = [verb_lead(run), parts.noscript(still, "The first figure"), *map(parts.section, sections)]
    links = [(section.id, section.title) for section in sections]
    if len(run.table):
        main.append(parts.numbers())
        links.append(parts.NUMBERS)
    main.append(parts.made(provenance_of(member)))
    charts = [chart for section in sections for chart in section.charts]
    return document(f"{member.verb}: {subject_of(run)}", [*links, parts.MADE], "".join(main), _data(run, charts))


def joint_page(run: Joint, still: Path | None = None) -> str:
    """The whole page as text; `still` is a picture of the first figure for readers without JavaScript."""
    hero = _hero(run)
    related = correlation_section(run.table, run.correlations) if run.correlations else None
    steps = {step.id: sections_of_step(run, step) for step in STEPS}
    steps["matters"] += [related[0]] if related else []
    steps["do"].insert(0, next_section(run))
    main = [lead(run, suggestions_of(run)), parts.noscript(still, "Change by depth")]
    for place, step in enumerate(STEPS, 1):
        main.append(_step(place, step, run, hero if step.id == "changed" else None, steps[step.id]))
    links = [(step.id, step.title) for step in STEPS]
    if len(run.table):
        main.append(parts.numbers())
        links.append(parts.NUMBERS)
    main.append(parts.made(joint_provenance(run)))
    sections = [section for found in steps.values() for section in found]
    charts = ([hero] if hero else []) + [chart for section in sections for chart in section.charts]
    data = _data(run, charts) | ({CORRELATIONS: related[1]} if related else {})
    return document(subject_of(run), [*links, parts.MADE], "".join(main), data)


def sections_of_step(run: Joint, step: Step) -> list[Section]:
    return [section for verb in step.verbs for section in SECTIONS[verb](run.of_verb(verb))]


def _hero(run: Joint) -> Chart | None:
    analyses = run.of_verb("analyze")
    hero = hero_of(analyses) if len(analyses.table) else None
    return replace(hero, models=tuple(analyses.table.models)) if hero else None


def _step(place: int, step: Step, run: Joint, hero: Chart | None, sections: list[Section]) -> str:
    """A step's heading, its first figure with the key numbers, its sections."""
    analyses = run.of_verb("analyze")
    first = parts.figure(hero) + parts.tiles(analyses, facts.facts_of(analyses)) if hero else ""
    told = any(member.verb in step.verbs for member in run.runs) or not step.missing
    missing = "" if told else f'<p class="intro">{escape(step.missing)}</p>'
    heading = f'<h2 class="step"><i aria-hidden="true">{place}</i>{escape(step.title)}</h2>'
    return f'<div class="chapter" id="{step.id}">{heading}{missing}{first}{"".join(map(parts.section, sections))}</div>'


def _data(run: Joint, charts: list[Chart]) -> dict[str, Any]:
    """Everything the scripts draw from; `switch` names the models that the reader may hide."""
    logged = logged_run(run)
    names = run.of_verb(*SWITCHED).table.models
    return page_data(run, {chart.id: chart.as_spec() for chart in charts}) | {
        "switch": [name for name in run.tuned if name in names],
        "gradient": gradient_data(logged) if logged else None,
    }
