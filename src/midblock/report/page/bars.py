"""A list of amounts with a bar each, on one scale: readable as text where the bars are not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Bar:
    """One line of the list.

    Attributes:
        said: the amount as written.
        strong: a total or a measured value, set off from its parts.
    """

    label: str
    value: float
    said: str
    strong: bool = False


def bar_list(bars: Sequence[Bar]) -> str:
    """HTML of the list; text is escaped."""
    longest = max((bar.value for bar in bars if math.isfinite(bar.value)), default=0.0) or 1.0
    return f'<dl class="bars">{"".join(_line(bar, longest) for bar in bars)}</dl>'


def _line(bar: Bar, longest: float) -> str:
    width = 100 * max(bar.value, 0.0) / longest if math.isfinite(bar.value) else 0.0
    look = ' class="strong"' if bar.strong else ""
    return (
        f"<div{look}><dt>{escape(bar.label)}</dt><dd>{escape(bar.said)}</dd>"
        f'<i aria-hidden="true" style="width:{width:.2f}%"></i></div>'
    )
