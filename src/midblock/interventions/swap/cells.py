"""The cells of a swap table: which blocks of the donor are put into the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from jaxtyping import Float
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.trace import BlockCalls, Held

EMBEDDING = -1


@dataclass(frozen=True, order=True)
class Cell:
    """Blocks first…last of the donor in the host; -1…-1 for the embedding alone."""

    first: int
    last: int

    @property
    def blocks(self) -> range:
        return range(0) if self.last == EMBEDDING else range(self.first, self.last + 1)

    def __str__(self) -> str:
        if self.last == EMBEDDING:
            return "embedding"
        return f"{self.first}-{self.last}" if self.first < self.last else str(self.last)


def make_cells(segments: int, total: int, *, depth: int | None = None, cumulative: str = "none") -> list[Cell]:
    """Cut a model of `total` blocks into segments, as `LayerPlan` does.

    Args:
        segments: how many, at most one a block.
        depth: only the last so many blocks of each segment (P1: 2); None for all of them.
        cumulative: `none` for each segment alone, `bottom` for all up to it, `top` for it and all above.

    Returns:
        Bottom first.

    Raises:
        MidblockError: more segments than blocks, or a depth that cannot be had.
    """
    if not 1 <= segments <= total:
        raise MidblockError(f"{segments} segments; the model has {total} blocks", hint=f"1 to {total}, or each")
    if depth is not None and depth < 1:
        raise MidblockError(f"depth is {depth}; it must be 1 or more")
    if depth is not None and cumulative != "none":
        raise MidblockError("depth picks blocks of each segment, which cumulative swaps whole", hint="leave one out")
    found = []
    for segment in range(segments):
        blocks = [block for block in range(total) if block * segments // total == segment]
        first, last = blocks[0], blocks[-1]
        if depth is not None:
            first = max(first, last - depth + 1)
        found.append({"none": Cell(first, last), "bottom": Cell(0, last), "top": Cell(first, total - 1)}[cumulative])
    return found


def run_cells(
    host: Anatomy, donor: Anatomy, ran: BlockCalls, donor_ran: BlockCalls, cells: Iterable[Cell]
) -> Iterator[tuple[Cell, Float[Tensor, "B T D"]]]:
    """Give what leaves the last block in each cell.

    What lies below a swapped segment is the host's own and is not computed again; nor are the donor's blocks that an
    earlier cell with the same lower end has run.

    Args:
        ran: the host's own pass, with the states entering each cell's first block.
        donor_ran: the donor's, with the states entering block 0 where the embedding is a cell.
    """
    total, ours, theirs = len(host), list(host.blocks), list(donor.blocks)
    for first, group in groupby(sorted(cells), key=lambda cell: cell.first):
        if first == EMBEDDING:
            # all that blocks are given comes from before them: also embeddings that enter each block by itself
            yield from ((cell, donor_ran.run(ours, donor_ran.entering[0], 0, total)) for cell in group)
            continue
        states, reached, held = ran.entering[first], first, Held()
        for cell in group:
            states, reached = ran.run(theirs, states, reached, cell.last + 1, held), cell.last + 1
            yield cell, ran.run(ours, states, reached, total, held.branched())
