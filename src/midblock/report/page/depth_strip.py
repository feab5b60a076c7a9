"""Findings beside each other along depth: a row each, drawn in HTML so that they are there without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from midblock.report.page.parts import unbroken


@dataclass(frozen=True)
class StripRow:
    """One finding.

    Attributes:
        spans: first and last block of each stretch it points at.
        said: the finding in words.
        look: class of its colour.
        strong: the row that the others are compared with.
    """

    label: str
    spans: tuple[tuple[int, int], ...]
    said: str
    look: str = "m0"
    strong: bool = False


def depth_strip(blocks: int, rows: Sequence[StripRow], behind: tuple[int, int] | None = None) -> str:
    """HTML of the rows; `behind` is a stretch shaded through all of them. Text is escaped.

    Args:
        blocks: L.
    """
    shade = "" if behind is None else f'<b style="{_place(behind, blocks)}"></b>'
    lines = "".join(_line(row, blocks, shade) for row in rows)
    return f'<dl class="strip">{lines}</dl>{_axis(blocks)}'


def _line(row: StripRow, blocks: int, shade: str) -> str:
    spans = "".join(f'<i class="{row.look}" style="{_place(span, blocks)}"></i>' for span in row.spans)
    strong = ' class="strong"' if row.strong else ""
    return (
        f'<div{strong}><dt>{escape(row.label)}</dt><dd class="track" aria-hidden="true">{shade}{spans}</dd>'
        f'<dd class="said">{escape(unbroken(row.said))}</dd></div>'
    )


def _place(span: tuple[int, int], blocks: int) -> str:
    first, last = max(0, span[0]), min(blocks - 1, span[1])
    return f"left:{100 * first / blocks:.2f}%;width:{100 * max(1, last - first + 1) / blocks:.2f}%"


def _axis(blocks: int) -> str:
    every = next(step for step in (1, 2, 5, 10, 20, 50, 1000) if blocks / step <= 8)
    ticks = [*range(0, blocks, every)]
    if ticks[-1] != blocks - 1:
        ticks = [tick for tick in ticks if blocks - 1 - tick > every / 2] + [blocks - 1]
    marks = "".join(f'<span style="left:{100 * (tick + 0.5) / blocks:.2f}%">{tick}</span>' for tick in ticks)
    return f'<div class="strip-axis" aria-hidden="true"><div>{marks}</div></div>'
