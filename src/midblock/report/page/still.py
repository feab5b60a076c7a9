"""Small drawings that need no script: a curve by depth with its levels, and points that trade one thing for another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from midblock.report.page.facts import number

WIDTH, HEIGHT = 760, 190
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 34
NEAR = 0.1  # of the axis: closer to an end, zero has no tick of its own


@dataclass(frozen=True)
class Dot:
    """One point.

    Attributes:
        look: class of its colour.
        name: what it is, for the pointer.
        strong: larger, and ringed.
    """

    x: float
    y: float
    look: str
    name: str
    strong: bool = False


@dataclass(frozen=True)
class Scale:
    """From values to places on the drawing."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.stop - self.start), 2)


def level_plot(
    values: Sequence[float], cuts: Sequence[int], chosen: Sequence[int], look: str, label: str, *, levels: bool = True
) -> str:
    """SVG of a curve by block as bars, the level between two change points as a line, the chosen blocks shaded.

    Args:
        values: one a block, NaN where there is none.
        cuts: blocks at which a new level begins.
        label: what it shows, in words.
        levels: draw them.
    """
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(0.0, *known), max(0.0, *known)
    y, x = Scale(low, high, HEIGHT - BOTTOM, TOP), Scale(0, len(values), LEFT, WIDTH - RIGHT)
    shade = "".join(_box(x(block), x(block + 1), TOP, HEIGHT - BOTTOM, look, ".15") for block in chosen)
    bars = "".join(
        _box(x(block + 0.18), x(block + 0.82), min(y(value), y(0)), max(y(value), y(0)), look, ".55")
        for block, value in enumerate(values)
        if math.isfinite(value)
    )
    lines = _levels(values, cuts, x, y) if levels else ""
    return _drawing(shade + bars + lines + _depth(len(values), x) + _ends(low, high, y), label)


def _levels(values: Sequence[float], cuts: Sequence[int], x: Scale, y: Scale) -> str:
    ends, lines = [0, *(cut for cut in cuts if 0 < cut < len(values)), len(values)], []
    for first, stop in pairwise(ends):
        inside = [value for value in values[first:stop] if math.isfinite(value)]
        if inside:
            at = y(sum(inside) / len(inside))
            lines.append(f'<line class="m0 line" x1="{x(first)}" x2="{x(stop)}" y1="{at}" y2="{at}"/>')
        if first:
            lines.append(f'<line class="epoch" x1="{x(first)}" x2="{x(first)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return "".join(lines)


def trade_plot(dots: Sequence[Dot], across: str, up: str, label: str) -> str:
    """SVG of points.

    Args:
        across, up: what the axes are.
    """
    known = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]
    if not known:
        return ""
    tall = 2 * HEIGHT
    x = Scale(min(dot.x for dot in known), max(dot.x for dot in known), LEFT + 12, WIDTH - RIGHT - 12)
    y = Scale(min(dot.y for dot in known), max(dot.y for dot in known), tall - BOTTOM - 12, TOP + 12)
    marks = "".join(
        f'<circle class="{dot.look} {"bar" if not dot.strong else "dot-mark"}" cx="{x(dot.x)}" cy="{y(dot.y)}" '
        f'r="{7 if dot.strong else 4}"><title>{escape(dot.name)}</title></circle>'
        for dot in sorted(known, key=lambda dot: dot.strong)
    )
    words = (
        f'<text x="{WIDTH - RIGHT}" y="{tall - 6}" text-anchor="end">{escape(across)} →</text>'
        f'<text x="{LEFT - 52}" y="{TOP - 2}">{escape(up)} ↑</text>'
    )
    frame = f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{tall - BOTTOM}" y2="{tall - BOTTOM}"/>'
    ticks = "".join(
        f'<text x="{x(value)}" y="{tall - BOTTOM + 14}" text-anchor="middle">{number(value)}</text>'
        for value in dict.fromkeys((x.low, x.high))
    )
    return _drawing(frame + marks + ticks + _ends(y.low, y.high, y) + words, label, tall)


def _ends(low: float, high: float, y: Scale) -> str:
    """The smallest and the largest value, and zero between them."""
    apart = low < 0 < high and min(-low, high) > NEAR * (high - low)
    ticks = dict.fromkeys((low, high, *([0.0] if apart else [])))
    return "".join(
        f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{number(value)}</text>' for value in ticks
    )


def _depth(blocks: int, x: Scale) -> str:
    every = next(step for step in (1, 2, 5, 10, 20, 50, 1000) if blocks / step <= 16)
    marks = "".join(
        f'<text x="{x(block + 0.5)}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{block}</text>'
        for block in range(0, blocks, every)
    )
    return f'{marks}<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">block</text>'


def _box(left: float, right: float, top: float, bottom: float, look: str, opacity: str) -> str:
    size = f'width="{max(right - left, 0.5):.2f}" height="{max(bottom - top, 0.5):.2f}"'
    return f'<rect class="{look} bar" x="{left}" y="{top}" {size} fill-opacity="{opacity}"/>'


def _drawing(inside: str, label: str, height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{inside}</svg>"
    )
