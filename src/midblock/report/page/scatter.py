"""Points with intervals both ways, drawn as SVG when the page is written: no script is needed to see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from midblock.base import Estimate
from midblock.report.page import palette
from midblock.report.page.facts import number

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 130, 14, 46
TICKS = 4


@dataclass(frozen=True)
class Dot:
    """One point.

    Attributes:
        x, y: with their intervals, NaN where there is none.
    """

    label: str
    x: Estimate
    y: Estimate


def scatter(dots: Sequence[Dot], across: str, upward: str, *, zero: bool = False, told: bool = True) -> str:
    """The figure as HTML; text is escaped.

    Args:
        across, upward: what the axes say.
        zero: both axes include zero, with a rule there.
        told: places across are numbers; else they only set points apart.
    """
    shown = [dot for dot in dots if math.isfinite(dot.x.value) and math.isfinite(dot.y.value)]
    if not shown:
        return ""
    x, y = (_span([dot.x for dot in shown], zero), _span([dot.y for dot in shown], zero))
    parts = [_axes(x, y, across, upward, zero, told)]
    parts += [_dot(dot, place, x, y) for place, dot in enumerate(shown, 1)]
    said = escape(f"{upward} against {across}: {len(shown)} points")
    return f'<div class="plot scroll"><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ' \
           f'role="img" aria-label="{said}">{"".join(parts)}</svg></div>'  # fmt: skip


def _span(estimates: Sequence[Estimate], zero: bool) -> tuple[float, float]:
    """The ends of an axis: all values and intervals, with a margin."""
    known = [end for each in estimates for end in (each.value, each.low, each.high) if math.isfinite(end)]
    low, high = min([*known, *([0.0] if zero else [])]), max([*known, *([0.0] if zero else [])])
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(span: tuple[float, float]) -> list[float]:
    """Round numbers inside an axis, some four of them."""
    rough = (span[1] - span[0]) / TICKS
    unit = 10 ** math.floor(math.log10(rough))
    step = next(each * unit for each in (1, 2, 5, 10) if each * unit >= rough)
    first, last = math.ceil(span[0] / step), math.floor(span[1] / step)
    return [place * step for place in range(first, last + 1)]


def _right(value: float, span: tuple[float, float]) -> float:
    return LEFT + (value - span[0]) / (span[1] - span[0]) * (WIDTH - LEFT - RIGHT)


def _down(value: float, span: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (value - span[0]) / (span[1] - span[0]) * (HEIGHT - TOP - BOTTOM)


def _axes(x: tuple[float, float], y: tuple[float, float], across: str, upward: str, zero: bool, told: bool) -> str:
    parts = [
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>',
        f'<line class="rule" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
    ]
    for at in _ticks(x) if told else ():
        parts.append(f'<text x="{_right(at, x):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
                     f"{escape(number(at))}</text>")  # fmt: skip
    for up in _ticks(y):
        parts.append(f'<text x="{LEFT - 6}" y="{_down(up, y) + 4:.1f}" text-anchor="end">{escape(number(up))}</text>')
    if zero:
        parts.append(f'<line class="rule" x1="{_right(0, x):.1f}" x2="{_right(0, x):.1f}" y1="{TOP}" '
                     f'y2="{HEIGHT - BOTTOM}"/>')  # fmt: skip
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_down(0, y):.1f}" '
                     f'y2="{_down(0, y):.1f}"/>')  # fmt: skip
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="strong" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text class="strong" transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
                 f'text-anchor="middle">{escape(upward)}</text>')  # fmt: skip
    return "".join(parts)


def _dot(dot: Dot, place: int, x: tuple[float, float], y: tuple[float, float]) -> str:
    at, up = _right(dot.x.value, x), _down(dot.y.value, y)
    parts = []
    if math.isfinite(dot.y.low) and math.isfinite(dot.y.high):
        ends = _down(dot.y.low, y), _down(dot.y.high, y)
        parts.append(f'<line class="error" x1="{at:.1f}" x2="{at:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>')
    if math.isfinite(dot.x.low) and math.isfinite(dot.x.high):
        ends = _right(dot.x.low, x), _right(dot.x.high, x)
        parts.append(f'<line class="error" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{up:.1f}" y2="{up:.1f}"/>')
    parts.append(f'<circle class="dot-mark" cx="{at:.1f}" cy="{up:.1f}" r="4.5"/>')
    parts.append(f'<text x="{at + 8:.1f}" y="{up - 6:.1f}">{escape(dot.label)}</text>')
    title = escape(f"{dot.label}: {number(dot.y.value)}")
    return f'<g class="{palette.look(place)}"><title>{title}</title>{"".join(parts)}</g>'
