"""Pieces of the page as HTML: the opening, figures' frames, sections, tiles. All text from the run is escaped here."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path

from midblock.report.page import facts, palette
from midblock.report.page.chart import Chart, Section
from midblock.report.read.reading import Run

FALLBACK_HEADLINE = "What fine-tuning changed, layer by layer"
NUMBERS = ("numbers", "Numbers")
MADE = ("made", "How it was made")


def subject(run: Run) -> str:
    """What was compared, in a line."""
    return f"{', '.join(run.tuned)} against {run.base}" if run.tuned else run.base


def opening(run: Run, first: str) -> str:
    """Headline, readings, first figure; many readings would push the figure off the first screen, so they follow it."""
    readings = _readings(run)
    return _lead(run, readings) + first if len(run.tuned) <= 2 else _lead(run, "") + first + readings


def _lead(run: Run, below: str) -> str:
    headline = run.summary.get("headline") or FALLBACK_HEADLINE
    data = run.record.get("data")
    facts_line = [subject(run), f"{run.blocks} blocks"]
    if isinstance(data, dict) and data.get("reference"):
        facts_line.append(str(data["reference"]))
    eyebrow, headline = escape(" · ".join(facts_line)), escape(unbroken(str(headline)))
    return f'<section id="top" class="lead"><p class="eyebrow">{eyebrow}</p><h1>{headline}</h1>{below}</section>'


def _readings(run: Run) -> str:
    items = []
    for name in run.tuned:
        text = run.summary_of(name).get("reading")
        if text and text != run.summary.get("headline"):
            items.append(f"<li>{_swatch(run, name)}<b>{escape(name)}</b> {escape(unbroken(str(text)))}</li>")
    return f'<ul class="readings">{"".join(items)}</ul>' if items else ""


def unbroken(text: str) -> str:
    """Keep "9–20" and "93 %" on one line; ranges of blocks get their dash, negative numbers their minus sign."""
    text = re.sub(r"(?<=[Bb]locks )(\d+)-(\d+)", r"\1–\2", text)
    text = re.sub(r"(?<=[ (\[])-(?=\d)", "−", text)
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", re.sub(r"(?<=\d)–(?=\d)", "\u2060–\u2060", text))


def _swatch(run: Run, name: str) -> str:
    return f'<span class="dot {palette.look(run.hue(name))}"></span>'


def noscript(still: Path | None, alternative: str) -> str:
    """What a reader without JavaScript sees in place of the figures; `alternative` says what the picture shows."""
    picture = ""
    if still is not None:
        encoded = base64.b64encode(still.read_bytes()).decode()
        picture = f'<img alt="{escape(alternative)}" src="data:image/png;base64,{encoded}">'
    message = "The figures and the table are drawn by a script in this file; without it, see figures/ and layers.csv."
    return f'<noscript><p class="intro">{message}</p>{picture}</noscript>'


def figure(chart: Chart) -> str:
    """The frame of a figure; the scripts draw inside it."""
    key, title = escape(chart.id), escape(chart.title)
    buttons = "".join(
        f'<button type="button" data-save="{kind.lower()}" aria-label="Download {title} as {kind}">{kind}</button>'
        for kind in ("SVG", "PNG")
    )
    wide = ' class="wide"' if chart.wide else ""
    return (
        f'<figure id="figure-{key}" data-figure="{key}"{wide}><div class="head"><h3>{title}</h3>'
        f'<div class="tools">{buttons}</div></div><div class="plot scroll"></div>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def section(part: Section) -> str:
    figures = f'<div class="grid">{"".join(figure(chart) for chart in part.charts)}</div>' if part.charts else ""
    if part.folded:
        figures = f'<details class="more"><summary>{len(part.charts)} more figures</summary>{figures}</details>'
    return (
        f'<section id="{part.id}"><h2>{escape(part.title)}</h2><p class="intro">{escape(part.intro)}</p>'
        f"{figures}{part.body}</section>"
    )


def tiles(run: Run, found: list[facts.Fact], even: bool = False) -> str:
    """The key figures, a tile each; four of them fit a row where `even`."""
    each = "".join(_tile(run, fact) for fact in found)
    return f'<div class="tiles{" four" if even and len(found) == 4 else ""}">{each}</div>' if each else ""


def _tile(run: Run, fact: facts.Fact) -> str:
    several = max(len(run.tuned), len(fact.answers)) > 1
    lines = "".join(f"<li>{_name(run, name) if several else ''}{_answer(answer)}</li>" for name, answer in fact.answers)
    size = " several" if several else ""
    return f'<div class="tile{size}"><h3>{escape(fact.label)}</h3><ul>{lines}</ul><p>{escape(fact.note)}</p></div>'


def _name(run: Run, name: str) -> str:
    return f'<span class="name">{_swatch(run, name)}{escape(name)}</span>'


def _answer(answer: facts.Number | facts.Thirds) -> str:
    if isinstance(answer, facts.Number):
        aside = f" <small>{escape(answer.aside)}</small>" if answer.aside else ""
        return f"<span><strong>{escape(answer.text)}</strong>{aside}</span>"
    total = sum(answer.shares) or 1.0
    parts = "".join(f'<i style="flex:{max(share, 0) / total:.4f}"></i>' for share in answer.shares)
    shares = " · ".join(f"{100 * share:.0f}\u00a0%" for share in answer.shares)
    split = f'<span class="share-bar" aria-hidden="true">{parts}</span>'
    return f'<span class="shares">{split}<strong>{shares}</strong></span>'


def numbers() -> str:
    """The place of the table, which the scripts fill."""
    return (
        '<section id="numbers"><h2>Numbers</h2>'
        '<p class="intro">Every number behind the figures, rounded to seven digits (<code>layers.csv</code> and '
        "<code>layers.parquet</code> beside this page hold them in full).</p>"
        '<div class="filters" role="group" aria-label="Filter the table"></div>'
        '<div class="scroll numbers" tabindex="0" role="region" aria-label="Table of numbers"></div></section>'
    )


def made(provenance: str) -> str:
    return f'<section id="made"><h2>How this was made</h2>{provenance}</section>'
