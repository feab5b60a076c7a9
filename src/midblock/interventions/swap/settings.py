"""What a swap can be asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from midblock.base import MidblockError, unknown
from midblock.base.json_file import shown
from midblock.interventions.answering import AnsweringSettings
from midblock.interventions.swap.cells import Cell, make_cells

CUMULATIVE = ("none", "bottom", "top")
DIRECTIONS = ("both", "into_base", "into_tuned")
HEADS = ("both", "base", "tuned")
PREFIX = {"none": "swap", "bottom": "swap_bottom", "top": "swap_top"}


@dataclass(frozen=True, kw_only=True)
class SwapSettings(AnsweringSettings):
    """Options of `midblock swap` that decide its numbers.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    segments: str = "5"
    """S: depth segments that are swapped one at a time, or `each` for every block alone (P1: 5)."""

    depth: int | None = None
    """Only the last so many blocks of each segment (P1: 2); all of them when left out."""

    cumulative: str = "none"
    """`bottom`: a segment and all below it; `top`: a segment and all above it; `none`: a segment alone."""

    direction: str = "both"
    """`into_base` (tuned blocks into the base), `into_tuned` (base blocks into the tuned model) or `both`."""

    heads: str = "both"
    """Whose final norm and head read the result: `base`, `tuned` or `both`."""

    def __post_init__(self) -> None:
        self.check_answering()
        choices = {"cumulative": CUMULATIVE, "direction": DIRECTIONS, "heads": HEADS}
        for name, options in choices.items():
            if getattr(self, name) not in options:
                raise unknown(name, getattr(self, name), options)
        if self.segments != "each" and not re.fullmatch(r"\d{1,9}", self.segments):
            raise MidblockError(f"segments is {shown(self.segments)}", hint="a number such as 5, or each")

    @property
    def mode(self) -> str:
        """What the cells are: "segments", "each", "bottom" or "top"."""
        if self.cumulative != "none":
            return self.cumulative
        return "each" if self.segments == "each" else "segments"

    def cells(self, total: int) -> list[Cell]:
        """The cells for a model of `total` blocks.

        Raises:
            MidblockError: as `make_cells`.
        """
        segments = total if self.segments == "each" else int(self.segments)
        return make_cells(segments, total, depth=self.depth, cumulative=self.cumulative)
