"""What a probe can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from midblock.base import MidblockError, unknown
from midblock.evaluation import ANSWERS
from midblock.interventions.reading import ReadingSettings


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(ReadingSettings):
    """Options of `midblock probe` that decide its numbers.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    generate: bool = False
    """Answer greedily with the model cut off behind each block, too, and count exact matches."""

    generate_layers: str = "all"
    """Blocks to cut the model off at: `6-17`, `6,7,9-12`, `0.2-0.8`, `01100` or `all`."""

    generate_samples: int = 32
    """Examples to answer at each of them."""

    max_new_tokens: int = 256
    """Where an answer that does not end is cut."""

    reader: str | None = None
    """How an answer is read: `gsm8k`, `last_number`, `first_line`, `exact`; by default what fits the data."""

    def __post_init__(self) -> None:
        self.check_reading()
        if self.reader is not None and self.reader not in ANSWERS:
            raise unknown("reader", self.reader, ANSWERS)
        for name in ("generate_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise MidblockError(f"{name} is {getattr(self, name)}; it must be 1 or more")
