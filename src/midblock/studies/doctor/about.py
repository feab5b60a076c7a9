"""About: a number that is not known before it is tried, as the two ends it is expected between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from midblock.base.files import size_text

MINUTE, HOUR = 60.0, 3600.0


@dataclass(frozen=True)
class About:
    """Seconds or bytes, from `low` to `high`; two of them add end by end."""

    low: float
    high: float

    @classmethod
    def of(cls, value: float, below: float = 0.7, above: float = 1.5) -> About:
        """A value that may be off by these factors."""
        return cls(value * below, value * above)

    def __add__(self, other: About) -> About:
        return About(self.low + other.low, self.high + other.high)

    @property
    def seconds(self) -> str:
        """As a stretch of time."""
        unit, name = (1.0, "s") if self.high < 2 * MINUTE else (MINUTE, "min") if self.high < 2 * HOUR else (HOUR, "h")
        return f"{_short(self.low / unit)}–{_short(self.high / unit)} {name}"

    @property
    def bytes(self) -> str:
        """As an amount of memory or disk."""
        return f"{size_text(int(self.low))}–{size_text(int(self.high))}"

    def as_record(self) -> dict[str, Any]:
        return {"low": round(self.low, 3), "high": round(self.high, 3)}


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
