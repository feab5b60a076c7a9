"""Finding: one thing that a doctor saw, in a line, with its cure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from midblock.base import MidblockError

STOPS, CARE, TOLD = "stops", "care", "told"


@dataclass(frozen=True)
class Finding:
    """One thing that was seen.

    Attributes:
        level: "stops", the run would not start; "care", it would, and this should be known or mended; "told", a fact.
        what: what it is, and where.
        cure: what to try; "" where nothing is to be done.
    """

    level: str
    what: str
    cure: str = ""

    @classmethod
    def of_error(cls, error: MidblockError) -> Finding:
        """What the run itself would stop with."""
        return cls(STOPS, error.what, error.hint or "")

    def __str__(self) -> str:
        return f"{self.what} ({self.cure})" if self.cure else self.what

    def as_record(self) -> dict[str, Any]:
        return asdict(self)
