"""LayerPlan: which decoder blocks are meant, in any of the notations used wherever a depth is asked for."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from midblock.base.errors import MidblockError
from midblock.base.json_file import shown

NOTATIONS = "01100 · 0,42,42,0,0 · 6-17 · 6,7,9-12 · 0.2-0.8 · all"
SEGMENTS = re.compile(r"[01]{2,}")
LIST = re.compile(r"\s*\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*\s*")
DIGITS = 18  # of a number that is read on; what has more is beyond every model all the same


@dataclass(frozen=True)
class LayerPlan:
    """A choice of decoder blocks, with a rank for each where ranks were given.

    Attributes:
        total: L, the number of blocks of the model.
        blocks: the chosen block indices, ascending, each in 0…L-1.
        ranks: one rank per chosen block, or None when the notation gave none.
    """

    total: int
    blocks: tuple[int, ...]
    ranks: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, text: str, total: int) -> LayerPlan:
        """Read a plan for a model of `total` blocks.

        - `01100`: equal depth segments, bottom first, 1 where chosen (two digits or more).
        - `0,42,42,0,0`: a rank per segment; zero means "nothing there". A list that never falls or repeats is read as
          block indices instead; `ranks:8,16,32` and `blocks:6,7` settle it.
        - `6-17`, `6,7,9-12`: block indices, ends included.
        - `0.2-0.8`: depth fractions; a block is chosen when its middle lies between them.
        - `all`.

        Raises:
            MidblockError: when the text fits no notation, or selects a block that is not there, or none.
        """
        text = text.strip()
        if text == "all":
            return cls(total, tuple(range(total)))
        if text.startswith("auto:"):
            what = f"{shown(text)}: plans from an analysis are not there yet"
            raise MidblockError(what, hint=f"write one: {NOTATIONS}")
        if SEGMENTS.fullmatch(text):
            return cls._from_segments([int(digit) for digit in text], total, text, ranked=False)
        if "." in text and (match := re.fullmatch(r"(\d*\.\d+|0)\s*-\s*(\d*\.\d+|1)", text)):
            return cls._from_fractions(float(match[1]), float(match[2]), total, text)
        kind, _, body = text.rpartition(":")
        if kind not in ("", "ranks", "blocks") or not LIST.fullmatch(body):
            raise MidblockError(f"cannot read the layer plan {shown(text)}", hint=f"write it like {NOTATIONS}")
        numbers = [part.strip() for part in body.split(",")]
        plain = [_number(part) for part in numbers if part.isdigit()]
        falls = len(plain) == len(numbers) > 1 and any(b <= a for a, b in pairwise(plain))
        if kind == "ranks" or (kind == "" and falls):
            if len(plain) != len(numbers):
                raise MidblockError(f"cannot read the layer plan {shown(text)}", hint="ranks are single numbers")
            return cls._from_segments(plain, total, text, ranked=True)
        return cls._from_indices(numbers, total, text)

    def only(self, blocks: Collection[int]) -> LayerPlan:
        """The same choice without the blocks that are not among `blocks`, each rank with its block."""
        kept = [at for at, block in enumerate(self.blocks) if block in blocks]
        ranks = None if self.ranks is None else tuple(self.ranks[at] for at in kept)
        return LayerPlan(self.total, tuple(self.blocks[at] for at in kept), ranks)

    @classmethod
    def _from_segments(cls, marks: list[int], total: int, text: str, ranked: bool) -> LayerPlan:
        if len(marks) > total:
            raise MidblockError(f"the layer plan {shown(text)} has {len(marks)} segments, the model {total} blocks")
        segment = [block * len(marks) // total for block in range(total)]
        blocks = tuple(block for block in range(total) if marks[segment[block]])
        ranks = tuple(marks[segment[block]] for block in blocks)
        return cls._chosen(total, blocks, text, ranks if ranked else None)

    @classmethod
    def _from_fractions(cls, low: float, high: float, total: int, text: str) -> LayerPlan:
        blocks = tuple(block for block in range(total) if low <= (block + 0.5) / total <= high)
        return cls._chosen(total, blocks, text, None)

    @classmethod
    def _from_indices(cls, parts: list[str], total: int, text: str) -> LayerPlan:
        chosen: set[int] = set()
        for part in parts:
            first, _, last = part.partition("-")
            low, high = _number(first), _number(last or first)
            if low <= high and high >= total:
                what = f"the layer plan {shown(text)} names block {max(low, total)}"
                raise MidblockError(f"{what}; the model has 0 to {total - 1}")
            chosen.update(range(low, high + 1))
        return cls._chosen(total, tuple(sorted(chosen)), text, None)

    @classmethod
    def _chosen(cls, total: int, blocks: tuple[int, ...], text: str, ranks: tuple[int, ...] | None) -> LayerPlan:
        if not blocks:
            raise MidblockError(f"the layer plan {shown(text)} selects none of the model's {total} blocks")
        return cls(total, blocks, ranks)

    def __str__(self) -> str:
        """The block indices, runs shortened: `6-17` or `0,2,5-7`; a lone 10 is `10-10`, for `10` reads as segments."""
        runs: list[list[int]] = []
        for block in self.blocks:
            if runs and block == runs[-1][-1] + 1:
                runs[-1].append(block)
            else:
                runs.append([block])
        text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
        return f"{text}-{text}" if SEGMENTS.fullmatch(text) else text


def _number(digits: str) -> int:
    return int(digits.strip().lstrip("0")[:DIGITS] or "0")
