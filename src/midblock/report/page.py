"""write_report: assemble the page from the run's numbers, its text and the scripts beside this file."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib import resources
from pathlib import Path

from midblock.base import replace_atomically
from midblock.report import palette, parts
from midblock.report.figures import write_figures
from midblock.report.island import island, page_data
from midblock.report.provenance import provenance_of
from midblock.report.reading import Run
from midblock.report.sections import hero_of, sections_of

SCRIPTS = ("dom.js", "axes.js", "panels.js", "marks.js", "charts.js", "heatmap.js", "table.js", "page.js")


def write_report(folder: Path | str) -> Path:
    """Write `report.html` and `figures/*.png|pdf` into a run folder, from the results that stand there.

    Returns:
        The path of the page.

    Raises:
        MidblockError: when the folder holds no layer table, or cannot be written.
    """
    folder = Path(folder)
    run = Run.read(folder)
    figures = write_figures(run, folder / "figures")
    page = folder / "report.html"
    with replace_atomically(page) as temporary:
        temporary.write_text(page_of(run, figures.get("change_by_depth")), encoding="utf-8")
    return page


def page_of(run: Run, still: Path | None = None) -> str:
    """The whole page as text; `still` is a picture of the first figure for readers without JavaScript."""
    hero, sections = hero_of(run), sections_of(run)
    charts = ([hero] if hero else []) + [chart for section in sections for chart in section.charts]
    data = island(page_data(run, {chart.id: chart.as_spec() for chart in charts}))
    script = "\n".join(_asset(name) for name in SCRIPTS)
    first = parts.noscript(still) + (parts.figure(hero) if hero else "")
    body = [parts.bar(sections), "<main>", parts.opening(run, first), parts.tiles(run)]
    body += [parts.section(section) for section in sections]
    body += [parts.numbers(), f'<section id="made"><h2>How this was made</h2>{provenance_of(run)}</section>', "</main>"]
    body += ['<div id="tip" hidden></div>', f'<script type="application/json" id="data">{data}</script>']
    style = palette.variables() + _asset("page.css")
    return f"<!DOCTYPE html>\n{_head(run, style, script)}<body>{''.join(body)}<script>{script}</script></body></html>\n"


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _head(run: Run, style: str, script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>midblock · {escape(parts.subject(run))}</title><style>{style}</style></head>"
    )
