"""Lines over steps, drawn as SVG when the page is written: no script is needed to see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from midblock.report.page import palette
from midblock.report.page.facts import number

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 14, 42


@dataclass(frozen=True)
class Line:
    """One line: points across and up, in the order they are joined."""

    label: str
    points: Sequence[tuple[float, float]]
    hue: int


def lines(drawn: Sequence[Line], across: str, upward: str) -> str:
    """The figure as HTML; text is escaped. Points that are no numbers are left out."""
    known = [(each, [point for point in each.points if all(map(math.isfinite, point))]) for each in drawn]
    known = [(each, points) for each, points in known if points]
    if not known:
        return ""
    x, y = (_span([point[side] for _, points in known for point in points]) for side in (0, 1))
    marks = "".join(_line(each, points, x, y) for each, points in known)
    names = dict.fromkeys((each.label, each.hue) for each, _ in known)
    legend = "".join(f'<li><span class="dot {palette.look(hue)}"></span>{escape(label)}</li>' for label, hue in names)
    said = escape(f"{upward} against {across}: {len(known)} lines")
    return (
        f'<div class="plot scroll"><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{said}">{_axes(x, y, across, upward)}{marks}</svg></div><ul class="notes">{legend}</ul>'
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min([0.0, *values]), max(values)
    return low, high if high > low else low + 1.0


def _line(each: Line, points: Sequence[tuple[float, float]], x: tuple[float, float], y: tuple[float, float]) -> str:
    places = " ".join(f"{_right(at, x):.1f},{_down(up, y):.1f}" for at, up in points)
    last = f"{each.label}: {number(points[-1][1])} at {points[-1][0]:g}"
    style = 'fill="none" style="stroke:var(--c)" stroke-width="1.6"'
    return f'<g class="{palette.look(each.hue)}"><title>{escape(last)}</title><polyline {style} points="{places}"/></g>'


def _right(value: float, span: tuple[float, float]) -> float:
    return LEFT + (value - span[0]) / (span[1] - span[0]) * (WIDTH - LEFT - RIGHT)


def _down(value: float, span: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (value - span[0]) / (span[1] - span[0]) * (HEIGHT - TOP - BOTTOM)


def _axes(x: tuple[float, float], y: tuple[float, float], across: str, upward: str) -> str:
    floor, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>',
        f'<line class="rule" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{floor}"/>',
        f'<text class="strong" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>',
        f'<text class="strong" transform="translate(14 {(TOP + floor) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(upward)}</text>",
    ]
    for end in x:
        parts.append(f'<text x="{_right(end, x):.1f}" y="{floor + 15}" text-anchor="middle">{end:g}</text>')
    for end in y:
        parts.append(f'<text x="{LEFT - 6}" y="{_down(end, y) + 4:.1f}" text-anchor="end">{number(end)}</text>')
    return "".join(parts)
