"""What a probe can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from midblock.interventions.answering import AnsweringSettings


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(AnsweringSettings):
    """Options of `midblock probe` that decide its numbers.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    generate_layers: str = "all"
    """Blocks to cut the model off at: `6-17`, `6,7,9-12`, `0.2-0.8`, `01100` or `all`."""

    def __post_init__(self) -> None:
        self.check_answering()
