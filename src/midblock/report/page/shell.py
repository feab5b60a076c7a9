"""The page around its content, the same for every kind of run: head, policy, top bar, data and scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from midblock.report.page import palette
from midblock.report.page.island import island

SCRIPTS = (
    "dom.js",
    "axes.js",
    "panels.js",
    "marks.js",
    "charts.js",
    "heatmap.js",
    "steps.js",
    "step_heat.js",
    "plan.js",
    "spans.js",
    "matrix.js",
    "estimates.js",
    "table.js",
    "page.js",
)


def document(title: str, links: list[tuple[str, str]], main: str, data: Mapping[str, Any]) -> str:
    """The whole page as text.

    Args:
        title: of the browser's tab.
        links: ids and names of the sections, for the top bar.
        main: the content as HTML.
        data: what the scripts draw from.
    """
    script = "\n".join(_asset(name) for name in SCRIPTS)
    style = palette.variables() + _asset("page.css")
    body = (
        f'{_bar(links)}<main>{main}</main><div id="tip" hidden></div>'
        f'<script type="application/json" id="data">{island(data)}</script><script>{script}</script>'
    )
    return f"<!DOCTYPE html>\n{_head(title, style, script)}<body>{body}</body></html>\n"


def _asset(name: str) -> str:
    return resources.files("midblock.report").joinpath("assets", name).read_text(encoding="utf-8")


def _bar(links: list[tuple[str, str]]) -> str:
    """The bar that stays on top: links to the sections and the switch between light and dark."""
    anchors = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title in links)
    return (
        '<header class="topbar"><a class="brand" href="#top"><i></i><i></i><i></i>midblock</a>'
        f'<nav aria-label="Sections">{anchors}</nav>'
        '<button id="theme" type="button" aria-label="Colours: as the system">◐</button></header>'
    )


def _head(title: str, style: str, script: str) -> str:
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
        f"<title>midblock · {escape(title)}</title><style>{style}</style></head>"
    )
